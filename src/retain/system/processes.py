"""Several processes that learn one run together: which of them writes, and what they share.

`accelerate launch` or torchrun starts them. All run the same code on the same seeds; they differ in
the micro-batches that they train on and in the examples that they answer. The first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def count() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this one writes, and speaks."""
    return number() == 0


def connect(on_cpu: bool) -> str | None:
    """Joins the others; returns this one's device, or None where there are no others."""
    if count() == 1:
        return None
    from accelerate import PartialState

    return str(PartialState(cpu=on_cpu, backend=backend(on_cpu)).device)


def backend(on_cpu: bool) -> str | None:
    """What they speak through; None leaves it to accelerate."""
    return "gloo" if on_cpu and count() > 1 else None


@contextmanager
def first_alone() -> Iterator[bool]:
    """True in the first process; the others wait here, before it and after it.

    So nobody sees a change to the disk before its time, and everybody sees it afterwards.
    """
    _wait()
    yield is_first()
    _wait()


def _wait() -> None:
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def of_first(own: T) -> T:
    """What the first process has, on each of them: a shared disk may show another one less."""
    return gathered([own])[0]


def gathered(own: Sequence[T]) -> list[T]:
    """What all of them have, on each of them."""
    if count() == 1:
        return list(own)
    from accelerate.utils import gather_object

    found: list[T] = gather_object(list(own))
    return found
