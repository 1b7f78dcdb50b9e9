"""What a run keeps in JSON: names of files, and their shapes, held to when they are read.

A checksum says that a file is as it was written, and not by whom: a run may come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

from retain.errors import RetainError
from retain.system.files import read_json, read_jsonl

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
SCORES = "scores.json"
SINGLE = "single.json"

# In each task's folder.
TASK = "task.json"
TEST = "test.jsonl"
TRAINING = "training.jsonl"
EVALUATION = "evaluation.json"
ZERO_SHOT = "zero_shot.json"
COST = "cost.json"
QUALITY = "quality.json"
PREDICTIONS = "predictions"
UNFINISHED = "checkpoints"

# There too, kept by some methods.
MEMORY = "memory.jsonl"
TEACHER = "teacher"
HEADS = "heads.json"
GATES = "gates.json"
PSEUDO = "pseudo.jsonl"


def predictions_file(folder: Path, index: int) -> Path:
    """Where a task's folder has the predictions, made right after it, on task `index` (from 0)."""
    return folder / PREDICTIONS / f"{index + 1:02d}.jsonl"


class Fingerprints(BaseModel):
    """sha256 of the examples of each split."""

    train: str
    dev: str
    test: str


class TaskRecord(BaseModel):
    """`task.json`: what was learned."""

    name: str
    metric: str
    fingerprints: Fingerprints
    training: dict[str, Any] = {}
    max_new_tokens: PositiveInt | None = None


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


class Prediction(BaseModel):
    """A line of `predictions/<nn>.jsonl`: the answer to a test prompt, its score from 0 to 100."""

    prompt: str
    references: list[str]
    prediction: str
    score: float


class LogRow(BaseModel):
    """A line of `training.jsonl`: a logged step of a phase, its `loss_<part>` and other numbers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    phase: str
    step: int


class Heads(BaseModel):
    """`heads.json`, of seekr: the attention modules, and of each its heads' scores and choice."""

    modules: list[str]
    score: list[list[float]]
    selected: list[list[int]]


class Gates(BaseModel):
    """`gates.json`, of amlora: by layer the mean gates; the mean effective number of blocks."""

    layers: list[str]
    gates: list[list[float]]
    effective: float


class Named(BaseModel):
    """A backbone beside its options."""

    name: str


class MethodSettings(Named):
    """A method beside its options; only SAPT's have a `reflection`."""

    reflection: dict[str, Any] = {}


class EvaluationSettings(BaseModel):
    """What the scores of two runs have to share."""

    limit: int | None
    max_new_tokens: int


class Settings(BaseModel):
    """What is read of `config.yaml` by whoever loads no model."""

    backbone: Named
    method: MethodSettings
    training: dict[str, Any]
    evaluation: EvaluationSettings
    prompt: dict[str, Any]
    seed: int


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


def read_records(shape: Any, path: Path) -> list[Any]:
    """As `read_jsonl`, each row of a shape.

    Raises:
        RetainError: naming a file that is missing, or has a line that is no JSON or of another
            shape.
    """
    rows = read_jsonl(path)
    hold_to(list[shape], rows, path)
    return rows
