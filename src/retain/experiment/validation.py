"""Values checked against pydantic models, with errors of one line; `a.b=c` changes to values."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from retain.errors import RetainError, first_line
from retain.system.yaml_text import parse_yaml

Checked = TypeVar("Checked", bound=BaseModel)

Where = str | Callable[[str], str]
"""Where values come from: a file, or what says of a field in which file it is."""


def named(value: Any) -> Any:
    """`x`, of a method or a backbone, is short for {name: x}."""
    return {"name": value} if isinstance(value, str) else value


def place_of(where: Where, field: str) -> str:
    """Where a field comes from."""
    return where if isinstance(where, str) else where(field)


class UnknownFieldError(RetainError):
    """A field that no model has."""

    def __init__(self, where: str, field: str, known: Iterable[str]) -> None:
        super().__init__(
            f"{where}: unknown field '{field}'; remove it or use one of: {', '.join(known)}"
        )
        self.field = field


def refuse_unknown_fields(kind: type[BaseModel], values: Any, where: Where, prefix: str) -> None:
    """Raises UnknownFieldError for a field that no model has, in values that are not whole yet."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            if problem["type"] == "extra_forbidden":
                field = prefix + ".".join(map(str, problem["loc"]))
                known = _fields_at(kind, problem["loc"][:-1])
                raise UnknownFieldError(place_of(where, field), field, known) from None


def check(kind: type[Checked], values: Any, where: Where, prefix: str = "") -> Checked:
    """Builds a config model.

    Raises:
        RetainError: one line with the first bad field, its value and what is expected.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = (prefix + ".".join(str(part) for part in first["loc"])).rstrip(".")
        place = place_of(where, field)
        if first["type"] == "extra_forbidden":
            raise UnknownFieldError(place, field, _fields_at(kind, first["loc"][:-1])) from None
        value = first["input"]
        shown = value if isinstance(value, str) else reprlib.repr(value)  # whatever its size
        given = f" (got {shown[:60]!r})"
        if first["type"] == "missing":
            given = "; add it"
        elif first["type"] == "value_error" and isinstance(value, Mapping):
            given = ""  # of settings that do not go together the message has the names
        message = first["msg"].removeprefix("Value error, ")
        raise RetainError(f"{place}: field '{field}': {message}{given}") from None


def _fields_at(kind: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The fields of the model that `path` leads to."""
    current: Any = kind
    for part in path:
        if isinstance(part, str) and part in current.model_fields:
            current = current.model_fields[part].annotation
            current = next(
                (
                    a
                    for a in (current, *getattr(current, "__args__", ()))
                    if hasattr(a, "model_fields")
                ),
                current,
            )
    return list(getattr(current, "model_fields", ()))


def set_field(values: dict[str, Any], change: str) -> None:
    """Applies one `a.b=c` change to an experiment's values; `*` stands for every entry of a list.

    Only `values` itself is changed. What is inside it may be of a file, or stand in several places
    by an alias of YAML, and so it is copied along the path.

    Raises:
        RetainError: when it is no such change, or leads to no field.
    """
    keys, equals, text = change.partition("=")
    if not equals:
        raise RetainError(f"--set {change}: expected FIELD=VALUE, such as training.max_steps=50")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or first_line(error)
        raise RetainError(
            f"--set {change}: '{text}' is not valid YAML ({problem}); correct or quote it"
        ) from None
    try:
        _put(values, keys.split("."), value)
    except (ValueError, IndexError, AttributeError, TypeError):
        raise RetainError(f"--set {change}: no such field; check its name") from None


def _put(place: Any, path: Sequence[str], value: Any) -> None:
    """Sets the field that `path` leads to from `place`."""
    first, *rest = path
    keys: Iterable[Any] = [first]
    if isinstance(place, list):
        keys = range(len(place)) if first == "*" else [int(first)]
    for key in keys:
        if not rest:
            place[key] = value
            continue
        inner = place[key] if isinstance(place, list) else named(place.get(key, {}))
        place[key] = copy.copy(inner)
        _put(place[key], rest, value)
