"""A long stream's blocks, merged where they are alike, as far as the scores allow it."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from retain.errors import RetainError
from retain.layers.linkage import linked
from retain.layers.lora_pool import LoraPool
from retain.layers.merging import cosines, merged
from retain.methods.base import Method
from retain.runs.compacted import Compacted, compacted_file, read_compacted
from retain.runs.directory import RunDirectory

if TYPE_CHECKING:
    from retain.learner.learned_model import LearnedModel


def compact(learned: LearnedModel, blocks: int, max_loss: float) -> Compacted | None:
    """Merges blocks of look-alike tasks until there are `blocks` of them, and stores the result.

    Blocks are alike by the mean of two cosines: that of their tasks' keys in the router, and that
    of their ΔW. Routing stays one weight per task; tasks may have one block. The test examples are
    answered before and after. The tasks' own blocks stay on the disk: `roll_back` to the newest
    task removes the compaction.

    Args:
        learned: a loaded run, all of whose tasks are learned.
        blocks: the number of blocks to keep.
        max_loss: points of average performance (AP) that may be lost.

    Returns:
        What was stored; None if there are no more blocks than that.

    Raises:
        RetainError: when the method's tasks cannot share blocks, or more AP would be lost. Nothing
            is changed then.
    """
    learned.require_ready()
    pool, keys = _shared_pool(learned.method, learned.run)
    old, before_factors = list(pool.sharing), pool.factors()
    if blocks > max(old):
        return None
    shares = [count for _, count in sorted(Counter(old).items())]
    alike = (cosines(pool) + _key_cosines(keys, old)) / 2  # (N, N)
    groups = linked(alike, count=blocks).tolist()
    sharing, factors = [groups[block] for block in old], merged(pool, groups, shares)
    with learned.run.locked():  # before the answers, which take long
        before = list(learned.evaluate().values())
        try:
            pool.share(sharing, factors)
            after = list(learned.evaluate().values())
            lost = fmean(before) - fmean(after)
            if lost > max_loss:
                raise RetainError(
                    f"{learned.run.path}: {blocks} blocks instead of {len(shares)} would lose "
                    f"{lost:.2f} points of AP ({fmean(before):.1f} to {fmean(after):.1f}), more "
                    f"than --max-loss {max_loss:g}; nothing was changed: keep more blocks, or "
                    "allow more"
                )
            _store(learned.run, len(sharing) - 1, Compacted(sharing, before, after, factors))
        except BaseException:
            pool.share(old, before_factors)
            raise
    return Compacted(sharing, before, after, factors)


def load_compacted(run: RunDirectory, method: Method, index: int) -> None:
    """Restores the compaction made after task `index`, if any; the method has loaded the task.

    Raises:
        RetainError: when the file is damaged, or of another method or backbone.
    """
    compacted = read_compacted(run, index)
    if compacted is None:
        return
    pool, _ = _shared_pool(method, run)
    blocks = max(compacted.sharing) + 1
    for name, (rows, columns) in pool.shapes().items():
        shape = (rows * blocks, columns) if name.endswith(".A") else (rows, columns * blocks)
        if name not in compacted.factors or tuple(compacted.factors[name].shape) != shape:
            raise RetainError(
                f"{compacted_file(run, index)}: '{name}' is not of shape {shape}; restore the file "
                "from a copy of the run"
            )
    pool.share(compacted.sharing, compacted.factors)


def _shared_pool(method: Method, run: RunDirectory) -> tuple[LoraPool, Tensor]:
    """Returns the method's blocks and its tasks' keys.

    Raises:
        RetainError: when tasks of this method cannot share blocks.
    """
    pool, keys = method.exported_pool, method.task_keys()
    if keys is None or not isinstance(pool, LoraPool):
        raise RetainError(
            f"{run.path}: only LoRA blocks that a router weighs by a key per task can be merged; "
            "retain compact is for runs of sapt"
        )
    return pool, keys


def _key_cosines(keys: Tensor, sharing: list[int]) -> Tensor:
    """Computes the cosines of the blocks' mean keys, (N, N), from keys (T, d)."""
    unit = F.normalize(keys.detach().cpu().double(), dim=1)
    index = torch.tensor(sharing)
    sums = torch.zeros(max(sharing) + 1, keys.shape[1], dtype=unit.dtype).index_add(0, index, unit)
    means = F.normalize(sums, dim=1)
    return means @ means.T


def _store(run: RunDirectory, index: int, compacted: Compacted) -> None:
    """Writes a compaction as one file, which is committed or not there for any reader.

    The caller holds the run's lock.
    """
    tensors = {
        "sharing": torch.tensor(compacted.sharing),
        "before": torch.tensor(compacted.before),
        "after": torch.tensor(compacted.after),
        **compacted.factors,
    }
    run.write({compacted_file(run, index): safetensors.torch.save(tensors)})
