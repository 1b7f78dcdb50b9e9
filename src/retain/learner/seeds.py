"""Seeds by run, task and slot."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

EVALUATION_SLOT = 999
"""The seed slot of a task's evaluation; 0 is that between phases, 1 and on are those of phases."""


@dataclass(frozen=True)
class Seeds:
    """The seeds of one task, so that its random numbers do not depend on earlier tasks.

    Attributes:
        run: the run's seed.
        task: the task's position in the stream, from 0.
    """

    run: int
    task: int

    def of(self, slot: int) -> int:
        """Returns the task's seed for a slot: 0 between phases, from 1 on within phases."""
        return (self.run * 1_000_003 + self.task * 1_009 + slot) % 2**31

    def set(self, slot: int) -> None:
        """Seeds torch, numpy and Python with the seed of a slot."""
        transformers.set_seed(self.of(slot))
