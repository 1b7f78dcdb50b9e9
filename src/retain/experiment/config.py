"""The experiment file: YAML → checked models. Unknown keys are refused."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from retain.backbone import BackboneConfig, PromptConfig
from retain.backbone.precision import chosen_autocast, chosen_dtype
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.experiment.validation import UnknownFieldError, Where, check, named, place_of
from retain.methods import (
    Method,
    MethodConfig,
    find,
    is_installed,
    list_methods,
    source_of,
)
from retain.metrics.extract import EXTRACTIONS
from retain.metrics.text import METRICS
from retain.runs.environment import PLUGIN
from retain.runs.records import ENVIRONMENT, read_record
from retain.system.paths import expanded
from retain.tasks import Task
from retain.tasks.prompts import STYLES
from retain.training.config import FREE as FREE_TRAINING
from retain.training.config import TrainingConfig

READS = {
    "test": ("file", "hub"),
    "columns": ("file", "hub"),
    "subset": ("hub",),
    "prompt_style": tuple(STYLES),
    "references": tuple(STYLES),
}
"""Which readers take a field."""


class TaskConfig(BaseModel):
    """Where a task comes from. Paths are relative to the working directory.

    `path` is a file (.jsonl, .csv, .parquet), a benchmark folder (with `reader`), or a dataset id
    (with `reader: hub`); `test` is a file, or a split of the hub dataset. `extract` says which part
    of answers and references `metric` compares. `prompt_style` writes the prompts of a benchmark as
    a paper's code does; null writes them in retain's own wording. `references: drawn` keeps one of
    an instance's answers, drawn at random, for training and scoring. Settings in `training`, and
    `max_new_tokens`, replace those of the run for this task.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    path: str
    name: str | None = None
    test: str | None = None
    metric: str | None = None
    extract: str | None = None
    reader: Literal["file", "superni", "long_sequence", "trace", "hub"] = "file"
    columns: dict[Literal["prompt", "answer"], str] = Field(default_factory=dict)
    subset: str | None = None
    prompt_style: Literal["sapt", "olora"] | None = None
    references: Literal["drawn"] | None = None
    train_limit: PositiveInt | None = None
    training: TrainingConfig | None = None
    max_new_tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _used(self) -> TaskConfig:
        for field, readers in READS.items():
            if getattr(self, field) and self.reader not in readers:
                raise ValueError(f"the reader '{self.reader}' does not take '{field}'; remove it")
        styles = STYLES.get(self.reader, ())
        if self.prompt_style is not None and self.prompt_style not in styles:
            raise ValueError(
                f"the reader '{self.reader}' has no prompt_style '{self.prompt_style}'; choose one "
                f"of {', '.join(styles)}, or remove it"
            )
        return self

    @field_validator("name")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("is empty; give another, or leave it out")
        return value

    @field_validator("path", "test")
    @classmethod
    def _expanded(cls, value: str | None) -> str | None:
        """Keeps a text as it is, but for `~`; a hub's id has none."""
        home = value is not None and value.startswith("~")
        return str(expanded(value or "")) if home or value == "" else value

    @field_serializer("training")
    def _own(self, value: TrainingConfig | None) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(exclude_unset=True)

    @field_validator("metric", "extract")
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = METRICS if info.field_name == "metric" else EXTRACTIONS
        if value is not None and value not in known:
            raise ValueError(f"unknown; choose one of {', '.join(known)}")
        return value


def task_name(path: str, reader: str) -> str:
    """The name of a task that gives none: its folder's, its file's or its data set's."""
    if reader == "hub":
        return path.rpartition("/")[2]
    return Path(path).stem if reader == "file" else Path(path).name


class ExperimentConfig(BaseModel):
    """A whole run.

    `order` says which of `tasks` is learned first, second, …, by their numbers from 1, or
    `reversed`. In a file it may also be the name of one of the stream's `orders`. The checked
    experiment has its tasks in that order, and `order` is null.
    `plugins` are modules that register methods, beside the file or on Python's path.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: BackboneConfig
    method: dict[str, Any]
    tasks: list[TaskConfig] = Field(default_factory=list)
    order: list[PositiveInt] | Literal["reversed"] | None = None
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    plugins: list[str] = Field(default_factory=list)
    seed: NonNegativeInt = Field(default=0, lt=2**32)
    output: str | None = Field(default=None, min_length=1)

    @field_validator("backbone", "method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return named(value)

    @field_validator("output")
    @classmethod
    def _a_path(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("Input should be a path, which has no null character")
        return str(expanded(value)) if value is not None and value.startswith("~") else value

    @field_validator("order", mode="wrap")
    @classmethod
    def _each_once(
        cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        count = len(info.data.get("tasks", ()))
        try:
            order = check(value)
        except ValidationError:
            order = []
        if isinstance(order, list) and sorted(order) != list(range(1, count + 1)):
            raise ValueError(f"Input should have each number from 1 to {count} once, or 'reversed'")
        return order

    @model_validator(mode="after")
    def _ordered(self) -> ExperimentConfig:
        if self.order is not None:
            count = len(self.tasks)
            numbers = range(count, 0, -1) if self.order == "reversed" else self.order
            self.tasks = [self.tasks[number - 1] for number in numbers]
            self.order = None
        return self


def check_method(choice: Mapping[str, Any], where: Where) -> tuple[type[Method], MethodConfig]:
    """The method of a name, and its checked options."""
    options = dict(choice)
    name = options.pop("name", None)
    method = find(name) if isinstance(name, str) else None
    if method is None:
        place = place_of(where, "method.name")
        raise RetainError(
            f"{place}: field 'method.name': no method {reprlib.repr(name)}; "
            f"choose one of {', '.join(list_methods())}"
        )
    return method, check(method.Config, options, where, "method.")


def stored_experiment(
    values: Mapping[str, Any], path: Path
) -> tuple[ExperimentConfig, type[Method]]:
    """The experiment that a run keeps in the file `path`, and its method.

    Raises:
        RetainError: when a field is wrong, or is one that this version does not know: whoever
            removed that would break the file's checksum.
    """
    try:
        experiment = check(ExperimentConfig, values, str(path))
        method = find(str(experiment.method.get("name")))
        if method is None:
            raise RetainError(missing_method(experiment, path))
        check_method(experiment.method, str(path))
    except UnknownFieldError as error:
        raise RetainError(
            f"{path}: written by another version of retain (unknown field '{error.field}'); use "
            "that version, or start another run"
        ) from None
    return experiment, method


def training_of(experiment: ExperimentConfig, task: Task) -> TrainingConfig:
    """The run's training settings, overridden by those of the task."""
    values = {**experiment.training.model_dump(), **task.training}
    if values["bf16"] == "auto":  # of a task: as the run
        values["bf16"] = experiment.training.bf16
    return check(TrainingConfig, values, f"task '{task.name}'", "training.")


def missing_method(experiment: ExperimentConfig, path: Path) -> str:
    """Returns which plugin or package a run's method needs: a run never imports one by itself."""
    name = reprlib.repr(experiment.method.get("name"))
    if experiment.plugins == ["__main__"]:
        return (
            f"{path}: the method {name} was registered by a script; put its class into a module, "
            "and name that with --plugin"
        )
    if experiment.plugins:
        modules = " ".join(f"--plugin {module}" for module in experiment.plugins)
        return (
            f"{path}: the method {name} comes with a plugin, which may run any code; if you trust "
            f"it, add {modules} (the module, or the path of its file; in Python: import it first)"
        )
    stored = read_record(dict[str, str], path.parent / ENVIRONMENT)
    packages = [
        f"{key.removeprefix(PLUGIN)} {value}"
        for key, value in stored.items()
        if key.startswith(PLUGIN)
    ]
    if packages:
        return f"{path}: the method {name} comes with a package; install {' or '.join(packages)}"
    return (
        f"{path}: field 'method.name': no method {name}; choose one of {', '.join(list_methods())}"
    )


def resolved(experiment: ExperimentConfig, device: str | None = None) -> ExperimentConfig:
    """The same with every option of the method spelled out, so that it does not change with the
    defaults of a later version, and with what `auto` of dtype and bf16 stands for here."""
    method, options = check_method(experiment.method, "method")
    name, source = experiment.method["name"], experiment.backbone
    device = device or source.device  # that of a model that is loaded already
    trains_all = method.trains_backbone(options)
    dtype = chosen_dtype(source.dtype, device, trains_all)
    backbone = source.model_copy(update={"dtype": dtype})
    training = experiment.training
    bf16 = chosen_autocast(training.bf16, dtype, device, trains_all)
    training = training.model_copy(update={"bf16": bf16})
    plugin = source_of(name)
    plugins = [plugin] if plugin is not None and not is_installed(name) else []
    return experiment.model_copy(
        update={
            "backbone": backbone,
            "method": {"name": name, **options.model_dump(mode="json")},
            "training": training,
            "plugins": plugins,
        }
    )


FREE = (*(("training", field) for field in FREE_TRAINING), ("evaluation", "batch_size"))
"""What may change while a run goes on: it changes what the work takes, and what comes of it by
rounding at most."""
