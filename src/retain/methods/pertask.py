"""One LoRA per task, chosen by the task's name: the bound, no forgetting and no transfer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.errors import RetainError
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import Method, ParamGroup, Phase
from retain.methods.lora import LoraMethodConfig
from retain.store import read_json
from retain.tasks import Task


class PerTask(Method):
    """W x + (α/r) B_t A_t x, t the task's own block, learned from its own examples alone."""

    Config = LoraMethodConfig
    idea = "one LoRA per task, chosen by the task's name: no forgetting, no transfer"
    stores = "one LoRA"
    needs_task_id = True
    forgets = False

    def __init__(self, backbone: Backbone, config: LoraMethodConfig) -> None:
        self.backbone = backbone
        self.pool = LoraPool(backbone.model, config.target_modules, config.rank, config.alpha)

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on a fresh block."""
        self.pool.grow(task.name)
        rows = [self.backbone.encode(example) for example in task.train]
        yield Phase("learn", rows, [ParamGroup("block", self.pool.parameters())], self._loss)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.pool.use_block(len(batch["input_ids"]), -1)
        return {"task": self.backbone.answer_loss(batch)}

    def route(self, batch: Batch, task: str | None = None) -> Tensor | None:
        """One-hot weights on the named task's block."""
        if task not in self.pool.blocks:
            known = ", ".join(self.pool.blocks)
            raise RetainError(
                f"task '{task}': method pertask has no block of that name; name one of {known}"
                if task
                else f"method pertask needs the task's name (--task); it knows {known}"
            )
        return self.pool.use_block(len(batch["input_ids"]), self.pool.blocks.index(task))

    def save(self, folder: Path) -> None:
        """Writes the task's block."""
        self.pool.save_block(folder, self.backbone.name)

    def load(self, folder: Path) -> None:
        """Adds the task's block."""
        self.pool.load_block(folder, read_json(folder / "task.json")["name"])
