"""Replay: training re-reads kept examples of older tasks. The baseline of replay methods."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from retain.backbone import Batch
from retain.methods.shared.memory import MemoryMethod


class Replay(MemoryMethod):
    """Cross-entropy on the task and, in separate batches, on kept examples of older tasks."""

    traits = replace(
        MemoryMethod.traits,
        idea="kept examples of older tasks are learned again between batches of the new one",
        stores="a share of its examples; the newest weights of the backbone",
    )
    only_calls = True

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, named `replay` on a replay batch and else `task`."""
        (loss,) = super().loss(batch).values()
        return {"replay" if "is_replay" in batch else "task": loss}
