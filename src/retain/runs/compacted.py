"""Compactions of a run: after a task, the blocks that its tasks share from then on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retain.errors import RetainError
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.system.files import read_weights


def compacted_file(run: RunDirectory, index: int) -> Path:
    """Path of the compaction made when task `index` (from 0) was the newest."""
    return run.path / "compact" / f"{index + 1:02d}.safetensors"


@dataclass(frozen=True)
class Compacted:
    """A compaction after T tasks.

    Attributes:
        sharing: each task's block, from 0.
        before, after: each task's score (0 to 100) before and after it.
        factors: the blocks, as `merging.merged` returns them.
    """

    sharing: list[int]
    before: list[float]
    after: list[float]
    factors: dict[str, Tensor]


def read_compacted(run: RunDirectory, index: int) -> Compacted | None:
    """Reads the compaction made after task `index`; None where there is none.

    Raises:
        RetainError: when its file is damaged, or is not one of so many tasks.
    """
    path = compacted_file(run, index)
    if not results.holds(run, path):
        return None
    tensors = read_weights(path, dict.fromkeys(("sharing", "before", "after"), (index + 1,)))
    sharing, before, after = (tensors.pop(key).tolist() for key in ("sharing", "before", "after"))
    if {*sharing} != {*range(len({*sharing}))}:
        raise RetainError(f"{path}: numbers blocks otherwise than retain; restore it from a copy")
    return Compacted(sharing, before, after, tensors)


def newest_compacted(run: RunDirectory) -> Compacted | None:
    """Reads the newest compaction of a run, if any."""
    read = (read_compacted(run, index) for index in reversed(range(len(run.learned()))))
    return next(filter(None, read), None)
