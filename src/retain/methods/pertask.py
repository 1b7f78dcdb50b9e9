"""One LoRA per task, chosen by the task's name: the bound, no forgetting and no transfer."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from retain.backbone import Batch
from retain.methods.base import block_index
from retain.methods.shared.lora import BlockPerTask
from retain.methods.shared.routing_diagnostics import routing_diagnostics
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section


class PerTask(BlockPerTask):
    """W x + (α/r) B_t A_t x, t the task's own block, learned from its own examples alone."""

    traits = replace(
        BlockPerTask.traits,
        idea="one LoRA per task, chosen by the task's name: no forgetting, no transfer",
        needs_task_id=True,
        forgets=False,
    )

    def route(self, batch: Batch, task: str | None = None) -> None:
        """One-hot weights on the named task's block."""
        index = block_index(task, self.pool.blocks, "pertask")
        self.pool.use_block(len(batch["input_ids"]), index)

    def routing(self) -> Tensor | None:
        """The one-hot weights (B, T)."""
        return self.pool.weights

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The one-hot weights, which show that each task has its own block."""
        return routing_diagnostics(run)
