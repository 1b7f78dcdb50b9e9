"""IncLoRA: one LoRA per task, all of them always on. The baseline that O-LoRA starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import Method, MethodConfig, ParamGroup, Phase
from retain.methods.lora import LoraMethodConfig
from retain.phase import Unit
from retain.store import read_json
from retain.tasks import Task


class IncLora(Method):
    """W x + Σ_{i ≤ t} (α/r) B_i A_i x: A_t and B_t learn, older blocks are frozen.

    Incremental LoRA, as in O-LoRA's comparison (arXiv 2310.14152).
    """

    Config: ClassVar[type[MethodConfig]] = LoraMethodConfig
    idea = "a LoRA per task on top of all earlier ones, which stay as they are"
    stores = "one LoRA"
    over: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.over`."""

    def __init__(self, backbone: Backbone, config: LoraMethodConfig) -> None:
        self.backbone = backbone
        self.pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            old_block_gradient=True,
        )

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on a fresh block."""
        self.pool.grow(task.name)
        rows = [self.backbone.encode(example) for example in task.train]
        groups = [ParamGroup("block", self.pool.parameters())]
        yield Phase("learn", rows, groups, self._loss, over=self.over)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def route(self, batch: Batch, task: str | None = None) -> None:
        """There is nothing to choose: every block counts in full."""
        size = len(batch["input_ids"]), len(self.pool.blocks)
        self.pool.use(torch.ones(size, device=self.backbone.device) if size[1] else None)

    def save(self, folder: Path) -> None:
        """Writes the task's block."""
        self.pool.save_block(folder, self.backbone.name)

    def load(self, folder: Path) -> None:
        """Adds the task's block."""
        self.pool.load_block(folder, read_json(folder / "task.json")["name"])
