"""The examples of each batch of a phase: shuffled epochs, with replayed examples in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice

import torch
from torch.utils.data import Sampler

from retain.training.phase import Phase

MOST_BETWEEN = 8
"""The most steps on the task between two on replayed examples, with `every: auto`."""
REPLAY_SEED = 500
"""Added to the seed for the order of replayed examples, so that it differs from the task's."""


class Batches(Sampler[list[int]]):
    """Yields the example numbers of every micro-batch of a phase.

    Replayed examples are numbered after the task's. The task's examples come in the same steps
    with replay as without. Those of a step are sorted by length before its micro-batches are cut,
    so that little is padded, and processes that compute at the same time have as much to do.

    Args:
        phase: provides the data, replayed examples, `max_steps` and `tasks`.
        size: examples per micro-batch; the last of an epoch may have fewer.
        accumulation: micro-batches per optimizer step, over all processes.
        epochs: over the task's examples, when no number of steps is fixed.
        max_steps: optimizer steps on the task's examples, or −1.
        seed: of the shuffling.

    Attributes:
        every: a step on replayed examples follows every so many steps on the task's; 0 without
            replay.
        steps: optimizer steps, those on replayed examples included.
    """

    def __init__(
        self, phase: Phase, size: int, accumulation: int, epochs: float, max_steps: int, seed: int
    ) -> None:
        self._examples, self._size, self._accumulation = len(phase.data), size, accumulation
        self._rows = (phase.data, phase.replay.rows if phase.replay else ())
        self._seed = seed
        batches_per_epoch = -(-len(phase.data) // size)
        fixed = phase.max_steps or max_steps * phase.tasks
        by_epochs = max(1, math.ceil(epochs * batches_per_epoch / accumulation))
        self._task_steps = fixed if fixed > 0 else by_epochs
        self._replayed = len(phase.replay.rows) if phase.replay else 0
        # A small memory is spread over the micro-batches of a step, and not repeated in it.
        per_step = size * accumulation
        self._replay_size = max(1, -(-min(self._replayed, per_step) // accumulation))
        self.every = 0
        if phase.replay and self._replayed:
            published = max(1, -(-len(phase.data) // per_step) // -(-self._replayed // per_step))
            rules = {"reference": published, "auto": min(published, MOST_BETWEEN)}
            every = phase.replay.every
            self.every = every if isinstance(every, int) else rules[every]
        self.steps = self._task_steps + (self._task_steps // self.every if self.every else 0)

    def __len__(self) -> int:
        return self.steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        lengths = [len(row["input_ids"]) for rows in self._rows for row in rows]
        task = _endless(self._examples, self._size, self._seed)
        replayed = _endless(self._replayed, self._replay_size, self._seed + REPLAY_SEED)
        for step in range(1, self._task_steps + 1):
            yield from by_length(list(islice(task, self._accumulation)), lengths)
            if self.every and step % self.every == 0:
                old = islice(replayed, self._accumulation)
                batches = [[self._examples + number for number in batch] for batch in old]
                yield from by_length(batches, lengths)


def by_length(batches: list[list[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Sorts the rows of a step's micro-batches by length, longest first; one alone stays as it is.

    Args:
        batches: row numbers of each micro-batch.
        lengths: of every row.

    Returns:
        As many micro-batches of the same rows, and of the same sizes.
    """
    if len(batches) == 1:
        return batches
    rows = iter(sorted(chain.from_iterable(batches), key=lambda row: -lengths[row]))
    return [list(islice(rows, size)) for size in sorted(map(len, batches))]


def _endless(examples: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yields batches of example numbers, one shuffled epoch after another."""
    generator = torch.Generator()
    for epoch in count():
        order = torch.randperm(examples, generator=generator.manual_seed(seed + epoch)).tolist()
        yield from (order[i : i + size] for i in range(0, examples, size))
