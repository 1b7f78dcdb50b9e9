"""IncLoRA: a new LoRA per task, added to all earlier ones. The baseline of O-LoRA."""

from __future__ import annotations

from dataclasses import replace

import torch

from retain.backbone import Batch
from retain.methods.shared.lora import BlockPerTask


class IncLora(BlockPerTask):
    """W x + Σ_{i ≤ t} (α/r) B_i A_i x, where only A_t and B_t of task t are trained.

    W is a frozen weight of the backbone, x its input, and r and α the rank and scale of the blocks.
    This is incremental LoRA as in O-LoRA's comparison (arXiv 2310.14152).
    """

    traits = replace(
        BlockPerTask.traits,
        idea="a LoRA per task on top of all earlier ones, which stay as they are",
        fixed_mixture=True,
    )

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Gives every block the weight 1."""
        shape = len(batch["input_ids"]), len(self.pool.blocks)  # (B, T)
        self.pool.use(torch.ones(shape, device=self.backbone.device) if shape[1] else None)
