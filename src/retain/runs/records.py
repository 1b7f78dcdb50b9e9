"""The JSON files of a run: their names, and the types that they are read as.

A checksum says that a file is as it was written, and not by whom: a run may come from elsewhere.
So every value is checked when it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from retain.errors import RetainError
from retain.metrics.extract import WHOLE
from retain.system.files import read_json, read_jsonl

Shape = TypeVar("Shape")

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
PREDICTIONS = "predictions"
UNFINISHED = "checkpoints"


def predictions_file(folder: Path, index: int) -> Path:
    """Path of the predictions on task `index` (from 0) that were made right after a task."""
    return folder / PREDICTIONS / f"{index + 1:02d}.jsonl"


class Record(BaseModel):
    """Base of the values that are read from a run's files; a field it does not name is ignored."""

    model_config = ConfigDict(frozen=True)


class Fingerprints(Record):
    """sha256 of the examples of each split."""

    train: str
    dev: str
    test: str


class Counts(Record):
    """Number of examples of each split."""

    train: int
    dev: int
    test: int


class TaskRecord(Record):
    """`task.json`: what was learned; `training` and `max_new_tokens` are the task's own.

    `chat_template` is the sha256 of the template that its prompts were written with, or None.
    """

    name: str
    metric: str
    extract: str = WHOLE
    training: dict[str, Any]
    max_new_tokens: PositiveInt | None
    chat_template: str | None
    examples: Counts
    fingerprints: Fingerprints

    @property
    def scorer(self) -> str:
        """How its answers are scored, in words: the metric, and what it sees of them."""
        return self.metric if self.extract == WHOLE else f"{self.metric} ({self.extract})"


class Sample(Record):
    """Says that the score of task `task` (from 0) is of `examples` out of `of` test examples.

    `error` is its standard error, as in `continual.standard_error`.
    """

    task: NonNegativeInt
    examples: PositiveInt
    of: PositiveInt
    error: float


class Row(Record):
    """`evaluation.json`: the score (0 to 100) of every task so far, and mean weights over blocks.

    `routing[j]` holds the mean weight on each of the T blocks over the test prompts of task j that
    were asked, or None where the method does not route. `samples` has the scores that are not of
    all test examples.
    """

    scores: list[float | None]
    routing: list[list[float] | None]
    samples: list[Sample] = Field(default_factory=list)

    def sample(self, task: int) -> Sample | None:
        """What the score of a task is of; None if of all test examples."""
        return next((sample for sample in self.samples if sample.task == task), None)


class Scores(Record):
    """`scores.json`: names, the score matrix, and the metrics computed from it.

    `matrix[i][j]` is the score (0 to 100) on task j after learning task i. `single` are scores of
    one model per task, which forward transfer compares with; `zero_shot` were taken just before
    each task was learned. `metrics` is as in `continual.summary`. `samples[i]` has the scores of
    row i that are not of all test examples, and `standard_errors` those of the metrics that rest on
    such scores.
    """

    tasks: list[str]
    matrix: list[list[float | None]]
    samples: list[list[Sample]]
    single: list[float] | None
    zero_shot: list[float | None]
    metrics: dict[str, float | None]
    standard_errors: dict[str, float]


class Cost(Record):
    """`cost.json`: how many parameters were trained, and the seconds of learning."""

    parameters: int
    seconds: float


class Prediction(Record):
    """A line of `predictions/<nn>.jsonl`: the answer to a test prompt, its score from 0 to 100.

    `routing` holds the weight on each of the T blocks, where the method routes. `example` is the
    place of the prompt in the test split, from 0, where a sample of it was asked.
    """

    prompt: str
    references: list[str]
    prediction: str
    score: float
    routing: list[float] | None = None
    example: NonNegativeInt | None = None


class LogRow(Record):
    """A line of `training.jsonl`: a logged step of a phase, its `loss_<part>` and other numbers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    phase: str
    step: int

    @property
    def loss_parts(self) -> dict[str, float]:
        """The weighted parts of the loss, by name."""
        prefix = "loss_"
        numbers = self.__pydantic_extra__.items()
        return {k.removeprefix(prefix): value for k, value in numbers if k.startswith(prefix)}


class Named(Record):
    """A backbone or a method beside its options."""

    name: str


class EvaluationSettings(Record):
    """The evaluation settings that two runs have to share for their scores to be compared."""

    limit: int | None
    max_new_tokens: int


class Settings(Record):
    """The part of `config.yaml` that is read without loading a model."""

    backbone: Named
    method: Named
    training: dict[str, Any]
    evaluation: EvaluationSettings
    prompt: dict[str, Any]
    seed: int


def parse_record(shape: type[Shape], value: Any, path: Path) -> Shape:
    """Returns a value that was read from `path` as a record, or any other type.

    Raises:
        RetainError: naming the first field of another type.
    """
    try:
        return TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        where = f"field '{field}': " if field else ""
        raise RetainError(
            f"{path}: not as retain writes it ({where}{first['msg']}); restore it from a copy"
        ) from None


def read_record(shape: type[Shape], path: Path) -> Shape:
    """Reads one JSON value as a record, or any other type.

    Raises:
        RetainError: naming a file that is missing, no JSON, or of another type.
    """
    return parse_record(shape, read_json(path), path)


def read_records(shape: type[Shape], path: Path) -> list[Shape]:
    """Reads a record per line of a JSONL file.

    Raises:
        RetainError: naming a file that is missing, or has a line that is no JSON or of another
            type.
    """
    return parse_record(list[shape], read_jsonl(path), path)  # type: ignore[valid-type]
