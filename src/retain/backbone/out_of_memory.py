"""A lack of memory, told as one line that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retain.errors import RetainError

NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU."""


@contextmanager
def memory_advice(where: str, advice: str) -> Iterator[None]:
    """Whoever lets the model compute does it in here.

    Args:
        where: what is being done, for the error.
        advice: the setting that makes it take less, and a value for it.

    Raises:
        RetainError: when memory does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)):
            raise
        raise RetainError(f"{where}: out of memory; {advice}") from None
