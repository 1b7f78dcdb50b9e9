"""Writes docs/reference.md from docstrings, options and the command line's help.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from typer.models import ArgumentInfo

import retain
from retain.cli import app
from retain.config import ExperimentConfig
from retain.methods import METHODS
from retain.metrics.text import METRICS

PAGE = Path(__file__).parent / "reference.md"


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# Reference",
        "",
        "Written by `python docs/make_reference.py` from the code itself.",
        *_commands(),
        *_python(),
        *_experiment(),
        *_methods(),
    ]
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield from ("", "## Commands")
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        arguments, options = [], []
        parameters = inspect.signature(function).parameters
        for name, hint in typing.get_type_hints(function, include_extras=True).items():
            if name == "return":
                continue
            kind, told = typing.get_args(hint)
            if isinstance(told, ArgumentInfo):
                arguments.append(told.metavar or name.upper())
                continue
            named = isinstance(told.default, str) and told.default.startswith("--")
            flag = told.default if named else f"--{name.replace('_', '-')}"
            words = _values(kind).removesuffix(", none")
            value = "" if kind is bool else f" {told.metavar or words.upper()}"
            default = parameters[name].default
            shown = "required" if default is inspect.Parameter.empty else _default(default)
            options.append(f"| `{flag}{value}` | {_cell(told.help or '')} | {shown} |")
        title = " ".join(["retain", command.name or function.__name__, *arguments])
        yield from ("", f"### `{title}`", "", inspect.getdoc(function) or "")
        if options:
            yield from ("", "| option | | default |", "|---|---|---|", *options)


def _python() -> Iterator[str]:
    yield from ("", "## Python")
    for name in retain.__all__:
        thing = getattr(retain, name)
        yield from ("", f"### `retain.{name}`", *_docstring(thing))
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for key, member in vars(thing).items():
                function = getattr(member, "__func__", member)
                if not key.startswith("_") and inspect.isfunction(function):
                    yield from ("", f"#### `{name}.{key}{_signature(function)}`")
                    yield from _docstring(function)


def _signature(function: Any) -> str:
    """Names and defaults, without types: the docstring explains."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        empty = parameter.default is parameter.empty
        parts.append(parameter.name if empty else f"{parameter.name}={parameter.default!r}")
    return f"({', '.join(parts)})"


def _docstring(thing: Any) -> list[str]:
    text = inspect.getdoc(thing) or ""
    return ["", "```text", text, "```"] if "\n" in text else ["", text]


def _experiment() -> Iterator[str]:
    yield from (
        "",
        "## The experiment file",
        "",
        _first(ExperimentConfig),
        *_options(ExperimentConfig),
    )
    for name, field in ExperimentConfig.model_fields.items():
        config = _model(field.annotation)
        if config is not None:
            yield from ("", f"### `{name}`", "", _first(config), *_options(config))
    yield from ("", f"Metrics: {', '.join(f'`{name}`' for name in METRICS)}.")


def _methods() -> Iterator[str]:
    yield from ("", "## Methods' options")
    for name, method in sorted(METHODS.items()):
        yield from (
            "",
            f"### `{name}`",
            "",
            _first(method),
            "",
            f"Stores per task: {method.stores}.",
        )
        yield from _options(method.Config)


def _first(thing: Any) -> str:
    """A docstring as one paragraph, without its sections."""
    text = re.split(r"\n\n?(?:Args|Raises|Returns|Attributes):", inspect.getdoc(thing) or "")[0]
    return " ".join(text.split())


def _options(config: type[BaseModel]) -> Iterator[str]:
    rows = list(_fields(config, ""))
    if rows:
        yield from ("", "| option | values | default |", "|---|---|---|")
    for name, values, default in rows:
        yield f"| `{name}` | {_cell(values)} | {_cell(default)} |"
    nested = {_model(field.annotation) for field in config.model_fields.values()} - {None}
    if config is not ExperimentConfig:
        for inner in sorted((each for each in nested if each), key=lambda each: each.__name__):
            yield from ("", _first(inner))


def _fields(config: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in config.model_fields.items():
        inner = _model(field.annotation)
        if inner is not None and config is not ExperimentConfig:
            yield from _fields(inner, f"{prefix}{name}.")
        elif inner is None:
            default = (
                "required"
                if field.is_required()
                else _default(field.get_default(call_default_factory=True))
            )
            yield f"{prefix}{name}", _values(field.annotation), default


def _model(annotation: Any) -> type[BaseModel] | None:
    """The options of a nested field."""
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _values(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        known = [each for each in inner if each is not type(None)]
        none = [", none"] if len(known) < len(inner) else []
        return "".join([" or ".join(_values(each) for each in known), *none])
    if origin is list:
        return f"list of {_values(inner[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    words = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", Path: "path"}
    return words.get(annotation, "anything")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
