"""One experiment file, as it is written: settings, and those for certain cases only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from retain.errors import RetainError, first_line
from retain.experiment.validation import check, named
from retain.system.files import read_text
from retain.system.yaml_text import parse_yaml


def _text(name: Any) -> Any:
    """A name that is YAML's number, such as `order: 2`."""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def _several(value: Any) -> Any:
    return [_text(v) for v in (value if isinstance(value, list) else [value])]


Section = dict[str, Any]
Named = Annotated[Section, BeforeValidator(named)]
Names = Annotated[list[str], BeforeValidator(_several), Field(min_length=1)]
"""One name, or a list of which one has to match."""


SECTIONS = ("backbone", "method", "training", "first_training", "evaluation", "prompt")
"""Sections that may not be empty."""


class When(BaseModel):
    """The experiments that a case, or an entry of `covers`, is for.

    A field has one name or a list of names, and matches if the chosen name is among them. A field
    that is left out matches any name. All fields have to match.

    Attributes:
        stream: the `stream` of a file.
        backbone: the chosen backbone, by its name or by its short name in `backbones`.
        method: the chosen method.
        tune: what the chosen method trains with its merged options: `full` is all weights of the
            backbone, and `lora` is anything else, with or without an option `tune`. A LoRA wants
            another learning rate.
        order: a name of one of the stream's `orders`. It also matches if that order is chosen as a
            list of numbers or as `reversed`.
    """

    model_config = ConfigDict(extra="forbid")

    stream: Names | None = None
    backbone: Names | None = None
    method: Names | None = None
    tune: Names | None = None
    order: Names | None = None


class Settings(BaseModel):
    """Sections of an experiment. Their values are checked once all files are merged.

    Attributes:
        tasks: the list of tasks, in one file at most. In other files a mapping from a task's name
            to settings that are merged into that entry of the list; `*` stands for every task.
        first_training: options of `training` for the task that is learned first in the chosen
            order. They count over the run's `training`. The task's own `training`, in the list, by
            its name or by `*`, counts over them.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: Named | None = None
    method: Named | None = None
    tasks: Any = None
    training: Section | None = None
    first_training: Section | None = None
    evaluation: Section | None = None
    prompt: Section | None = None
    seed: Any = None

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value is None:  # over an earlier file's section it would drop that
            raise ValueError("Input should be a valid dictionary; add options, or remove the line")
        return value

    @field_validator("tasks")
    @classmethod
    def _listed_or_by_name(cls, value: Any) -> Any:
        by_name = isinstance(value, dict) and all(isinstance(v, dict) for v in value.values())
        if not (isinstance(value, list) or by_name):
            raise ValueError("Input should be a list of tasks, or settings by task name")
        return value


class Case(Settings):
    """Settings for certain experiments only.

    A case has any of the sections `backbone`, `method`, `tasks`, `training`, `first_training`,
    `evaluation`, `prompt` and `seed`. It chooses nothing: `backbone` and `method` have options and
    no name, and `tasks` has settings by task name and is no list.

    Attributes:
        when: the experiments that the settings are for.
    """

    when: When

    @field_validator("backbone", "method")
    @classmethod
    def _unnamed(cls, value: Section | None) -> Section | None:
        if value and "name" in value:
            raise ValueError("a case has options only, and no name; put the name into 'when'")
        return value

    @model_validator(mode="after")
    def _keeps_tune(self) -> Case:
        if self.when.tune is not None and "tune" in (self.method or {}):
            raise ValueError(
                "'method.tune' decides whether this case matches; set it in a case without "
                "'tune' in 'when'"
            )
        return self

    @field_validator("tasks")
    @classmethod
    def _no_list(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("a case has no list of tasks; give settings by task name")
        return value


class ExperimentFile(Settings):
    """A file that `retain run` reads: an experiment, or a part of one.

    `retain run` merges its files from left to right into one experiment, option by option: a value
    of a later file replaces that of an earlier one, and a list is replaced as a whole. Options
    beside the name of a backbone or a method are for that one, and are dropped if another is
    chosen. Beside the fields of an experiment, a file has these:

    Attributes:
        stream: the name of the stream of tasks, to which `when` and `covers` refer. At most one of
            the files has it.
        orders: a mapping from the name of an order to a list of all the tasks' names. The first
            order is the default. At most one of the files has it.
        order: the order to learn in: a name of one of `orders`, a list of the tasks' numbers from
            1, the same as a text (`2,1,3`), or `reversed`.
        recipe: the name of a recipe, which is a file of settings for streams of other files. At
            most one of the files has it, and none after it has the list of tasks. A recipe with the
            name of a method is refused with another method.
        covers: a list of mappings like `when`. An experiment that matches none of them is refused.
            Without `covers` every experiment is accepted.
        backbones: short names of backbones, each with the name that it stands for, or a mapping of
            options of `backbone` with `name`. `--backbone` takes short names.
        cases: a list of settings for certain experiments, each with a `when`. The cases that match
            are merged over the file's own settings, in the order of the list.
        plugins: modules that register methods, or .py files beside this one.
    """

    stream: str | None = None
    recipe: str | None = None
    plugins: list[str] = Field(default_factory=list)
    order: Any = None
    output: Any = None
    orders: dict[str, list[str]] = Field(default_factory=dict)
    covers: list[When] = Field(default_factory=list)
    backbones: dict[str, Named] = Field(default_factory=dict)
    cases: list[Case] = Field(default_factory=list)

    @field_validator("orders", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {_text(name): listed for name, listed in value.items()}


def read_file(path: Path) -> ExperimentFile:
    """Reads one experiment file.

    Raises:
        RetainError: naming the file, and the line or the field.
    """
    text = read_text(path)
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise RetainError(f"{path}{line}: not valid YAML ({problem}); correct it") from None
    if not isinstance(values, dict):
        raise RetainError(f"{path}: no fields; it needs 'backbone', 'method' and 'tasks'")
    return check(ExperimentFile, values, str(path))
