"""Advice for out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retain.errors import RetainError

NO_MEMORY = "can't allocate memory"
"""Part of torch's error message on a CPU, which has no exception type for it."""


@contextmanager
def memory_advice(where: str, advice: str) -> Iterator[None]:
    """Turns out-of-memory errors of the enclosed code into a RetainError with advice.

    Args:
        where: what is being done; starts the error message.
        advice: the setting that needs less memory, with a value; ends the error message.

    Raises:
        RetainError: if the CPU or the GPU runs out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)):
            raise
        raise RetainError(f"{where}: out of memory; {advice}") from None
