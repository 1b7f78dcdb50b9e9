"""One experiment file, as it is written: settings, and those for certain cases only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

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
    """Which experiments a case is for: each field that is given has to match."""

    model_config = ConfigDict(extra="forbid")

    stream: Names | None = None
    backbone: Names | None = None
    method: Names | None = None
    order: Names | None = None


class Settings(BaseModel):
    """Sections of an experiment, checked for their values once all files are merged.

    `tasks` is the list that a stream has, or settings by task name, for tasks of that list; those
    under `*` are for all of them.
    `first_training` is of the task that is learned first, whichever that is in the chosen order,
    over `training`; what a file has for that task by name counts over it.
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
    """Settings for certain experiments. It names no backbone, method or list of tasks."""

    when: When

    @field_validator("backbone", "method")
    @classmethod
    def _unnamed(cls, value: Section | None) -> Section | None:
        if value and "name" in value:
            raise ValueError("a case has options only, and no name; put the name into 'when'")
        return value

    @field_validator("tasks")
    @classmethod
    def _no_list(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("a case has no list of tasks; give settings by task name")
        return value


class ExperimentFile(Settings):
    """A file that `retain run` reads.

    Attributes:
        stream: a stream's name, for `when` and `covers`.
        orders: the names of a stream's tasks by the name of the order; the first is the default.
        recipe: a recipe's name.
        plugins: modules that register methods, or .py files beside this one.
        covers: the experiments that a recipe has settings for; others are refused.
        backbones: short names of backbones, and what they stand for.
        cases: settings that count where `when` matches, in their order, over the file's own.
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
