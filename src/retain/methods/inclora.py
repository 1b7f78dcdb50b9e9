"""IncLoRA: one LoRA per task, all of them always on. The baseline that O-LoRA starts from."""

from __future__ import annotations

from dataclasses import replace

import torch

from retain.backbone import Batch
from retain.methods.shared.lora import BlockPerTask


class IncLora(BlockPerTask):
    """W x + Σ_{i ≤ t} (α/r) B_i A_i x: A_t and B_t learn, older blocks are frozen.

    Incremental LoRA, as in O-LoRA's comparison (arXiv 2310.14152).
    """

    traits = replace(
        BlockPerTask.traits,
        idea="a LoRA per task on top of all earlier ones, which stay as they are",
        fixed_mixture=True,
    )

    def route(self, batch: Batch, task: str | None = None) -> None:
        """There is nothing to choose: every block counts in full."""
        size = len(batch["input_ids"]), len(self.pool.blocks)
        self.pool.use(torch.ones(size, device=self.backbone.device) if size[1] else None)
