"""Timing of functions that take turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Side = Callable[[], object]
Name = TypeVar("Name")


def times_of(sides: Mapping[Name, Side], rounds: int) -> dict[Name, list[float]]:
    """Measures the seconds of each side in each round, after one round that is not counted.

    Every other round is in reverse order, so that no side always follows the same one.
    """
    times: dict[Name, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            side()
            if number:
                times[name].append(time.perf_counter() - began)
    return times
