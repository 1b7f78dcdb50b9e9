"""Which rows make each batch of a phase: shuffled epochs, with replayed rows in between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from torch.utils.data import Sampler

from retain.training.phase import Phase

REPLAY_SEED = 500
"""Keeps the order of replayed rows apart from that of the task's rows."""


class Batches(Sampler[list[int]]):
    """Row numbers of every micro-batch of a phase; those of replayed rows follow the task's rows.

    The task's rows come in the same order with replay as without.

    Args:
        phase: its data, replayed rows, `max_steps` and `tasks` count.
        size: rows in a micro-batch; the last of an epoch may have fewer.
        accumulation: micro-batches to an optimizer step.
        epochs: over the task's rows, when no number of steps is fixed.
        max_steps: optimizer steps on the task's rows, or −1.
        seed: of the shuffling.

    Attributes:
        every: after so many steps on the task's rows comes one on replayed rows; 0 without these.
        steps: optimizer steps, those on replayed rows included.
    """

    def __init__(
        self, phase: Phase, size: int, accumulation: int, epochs: float, max_steps: int, seed: int
    ) -> None:
        self._rows, self._size, self._accumulation = len(phase.data), size, accumulation
        self._seed = seed
        in_epoch = -(-len(phase.data) // size)
        fixed = phase.max_steps or max_steps * phase.tasks
        self._own = fixed if fixed > 0 else max(1, math.ceil(epochs * in_epoch / accumulation))
        self._replayed = len(phase.replay.rows) if phase.replay else 0
        # A small memory is spread over the micro-batches of a step, not gone over many times.
        step = size * accumulation
        self._replay_size = max(1, -(-min(self._replayed, step) // accumulation))
        self.every = 0
        if phase.replay and self._replayed:
            published = -(-len(phase.data) // step) // -(-self._replayed // step)
            self.every = phase.replay.every or max(1, published)
        self.steps = self._own + (self._own // self.every if self.every else 0)

    def __len__(self) -> int:
        return self.steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        own = _endless(self._rows, self._size, self._seed)
        replayed = _endless(self._replayed, self._replay_size, self._seed + REPLAY_SEED)
        for step in range(1, self._own + 1):
            yield from islice(own, self._accumulation)
            if self.every and step % self.every == 0:
                for batch in islice(replayed, self._accumulation):
                    yield [self._rows + row for row in batch]


def _endless(rows: int, size: int, seed: int) -> Iterator[list[int]]:
    """Batches of one shuffled epoch after another."""
    generator = torch.Generator()
    for epoch in count():
        order = torch.randperm(rows, generator=generator.manual_seed(seed + epoch)).tolist()
        yield from (order[i : i + size] for i in range(0, rows, size))
