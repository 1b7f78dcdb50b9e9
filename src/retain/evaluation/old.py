"""Which older tasks a row of the score matrix measures, and on which of their test examples."""

from __future__ import annotations

import random
import re
from typing import Annotated

from pydantic import AfterValidator

ALL = "all"
_FORM = re.compile(r"(limit|sampled) ([1-9]\d{0,8})")


def _checked(value: str) -> str:
    """Accepts `all`, `limit N` (N ≥ 2: one example has no spread) and `sampled N`."""
    value = " ".join(value.split())
    if value != ALL and (not _FORM.fullmatch(value) or value == "limit 1"):
        raise ValueError("Input should be 'all', 'limit N' (N from 2 on) or 'sampled N'")
    return value


OldScores = Annotated[str, AfterValidator(_checked)]
"""`evaluation.old`: `all`, `limit N` or `sampled N`."""


def measured_tasks(old: str, count: int, seed: int) -> set[int]:
    """Draws which of `count` older tasks a row measures: N of them under `sampled N`, or all."""
    number = _number(old, "sampled")
    if number is None or number >= count:
        return set(range(count))
    return set(random.Random(seed).sample(range(count), number))


def asked_examples(old: str, count: int, seed: int) -> list[int] | None:
    """Draws which of `count` test examples an older task is asked: N of them under `limit N`.

    Returns:
        Their places in the test split, from 0 and in order; None if all are asked.
    """
    number = _number(old, "limit")
    if number is None or number >= count:
        return None
    return sorted(random.Random(seed).sample(range(count), number))


def _number(old: str, kind: str) -> int | None:
    found = _FORM.fullmatch(old)
    return int(found[2]) if found and found[1] == kind else None
