"""Timing of functions that take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Side = Callable[[], object]
Name = TypeVar("Name")


def times_of(
    sides: Mapping[Name, Side], rounds: int, prepare: Mapping[Name, Side] | None = None
) -> dict[Name, list[float]]:
    """Measures the seconds of each side in each round, after one round that is not counted.

    Every other round is in reverse order, so that no side always follows the same one. What a side
    has handed to a GPU counts to its time; what prepares it runs before, and does not.
    """
    times: dict[Name, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
            if prepare is not None:
                prepare[name]()
            began = synchronize()
            side()
            ended = synchronize()
            if number:
                times[name].append(ended - began)
    return times


def synchronize() -> float:
    """Waits for what a GPU has been given, if there is one, and returns the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
