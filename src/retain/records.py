"""The shapes of what a run keeps in JSON, held to when it is read.

A checksum says that a file is as it was written, and not by whom: a run may come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from retain.errors import RetainError
from retain.files import read_json


class TaskRecord(BaseModel):
    """`task.json`: what was learned; sha256 of the examples by split."""

    name: str
    metric: str
    fingerprints: dict[str, str]


class Row(BaseModel):
    """`evaluation.json`: of every task so far its score, and mean weights over the blocks."""

    scores: list[float | None]
    routing: list[list[float] | None]


class Quality(BaseModel):
    """`quality.json`: what a task's pseudo-samples are worth; see `metrics.generated`."""

    count: int
    auc: float | None
    distinct_2: float | None
    real_distinct_2: float | None
    duplicates: int
    copies: int
    dropped: int


class Named(BaseModel):
    """A backbone or a method, beside its options."""

    name: str


class Settings(BaseModel):
    """What is read of `config.yaml` by whoever loads no model."""

    backbone: Named
    method: Named
    evaluation: dict[str, Any]
    prompt: dict[str, Any]


def hold_to(shape: Any, value: Any, path: Path) -> None:
    """Looks at a value that was read from `path`.

    Raises:
        RetainError: with the first field that is of another kind.
    """
    try:
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        where = f"field '{field}': " if field else ""
        raise RetainError(
            f"{path}: not as retain writes it ({where}{first['msg']}); restore it from a copy"
        ) from None


def read_record(shape: Any, path: Path) -> Any:
    """As `read_json`, of a shape.

    Raises:
        RetainError: naming a file that is missing, no JSON, or of another shape.
    """
    value = read_json(path)
    hold_to(shape, value, path)
    return value
