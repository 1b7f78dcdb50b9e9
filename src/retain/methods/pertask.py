"""One LoRA per task, chosen by the task's name: a bound without forgetting or transfer."""

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
    """W x + (α/r) B_t A_t x, where block t is trained on task t alone.

    W is a frozen weight of the backbone, x its input, and r and α the rank and scale of the block.
    """

    traits = replace(
        BlockPerTask.traits,
        idea="one LoRA per task, chosen by the task's name: no forgetting, no transfer",
        needs_task_id=True,
        forgets=False,
    )

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Gives the named task's block the weight 1 and all others 0."""
        index = block_index(task, self.pool.blocks, "pertask")
        self.pool.use_block(len(batch["input_ids"]), index)

    def routing(self) -> Tensor | None:
        """Returns the one-hot weights (B, T)."""
        return self.pool.weights

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the section on the one-hot weights over the blocks."""
        return routing_diagnostics(run)
