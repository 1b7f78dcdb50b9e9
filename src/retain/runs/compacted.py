"""Compactions of a run: after a task, the blocks that its tasks share from then on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from retain.errors import RetainError
from retain.metrics.continual import Drop
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


def unscored(run: RunDirectory) -> Compacted | None:
    """Reads the compaction made since the last row of the score matrix, if any."""
    return read_compacted(run, len(run.learned()) - 1)


def points_lost(run: RunDirectory) -> list[Drop | None]:
    """What each task has lost since it was learned; of a compacted run, with the compaction.

    The newest task, which only a compaction can cost something, may be left out.
    """
    compacted = unscored(run)
    if compacted is None:
        return [drops.since_learned for drops in results.dropped(run)]
    then = [row.scores[-1] for row in results.rows(run)]
    pairs = zip(then, compacted.after, strict=True)
    return [None if score is None else Drop(score - now) for score, now in pairs]


def compaction_note(run: RunDirectory) -> str:
    """A sentence on a compaction that the score matrix does not show yet; empty without one."""
    compacted = unscored(run)
    if compacted is None:
        return ""
    before, after = fmean(compacted.before), fmean(compacted.after)
    return (
        f"{run.path.resolve().name} was compacted after these scores: AP {before:.1f} before, "
        f"{after:.1f} after; retain inspect has each task's."
    )
