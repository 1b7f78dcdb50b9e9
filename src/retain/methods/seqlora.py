"""Sequential LoRA: one block learns every task in turn. The baseline that forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from retain.backbone import Batch
from retain.methods.base import ParamGroup, Phase
from retain.methods.lora import LoraMethod, LoraMethodConfig
from retain.tasks import Task


class SeqLora(LoraMethod):
    """W x + (α/r) B A x with one A and B for all tasks (Hu et al., arXiv 2106.09685)."""

    Config = LoraMethodConfig
    idea = "one LoRA learns every task in turn, with nothing against forgetting"
    stores = "the LoRA as it was after the task"

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on the task's own examples."""
        if self.pool.blocks:
            self.pool.thaw()
        else:
            self.pool.grow("shared")
        rows = [self.backbone.encode(example) for example in task.train]
        yield Phase("learn", rows, [ParamGroup("block", self.pool.parameters())], self._loss)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def route(self, batch: Batch, task: str | None = None) -> None:
        """The one block is always on; there is nothing to choose."""
        if self.pool.blocks:
            self.pool.use_block(len(batch["input_ids"]), 0)

    def save(self, folder: Path) -> None:
        """Writes the block as it is after this task."""
        self.pool.save_block(folder, self.backbone.name)

    def load(self, folder: Path) -> None:
        """Replaces the block by a later one."""
        self.pool.clear()
        self.pool.load_block(folder, "shared")
