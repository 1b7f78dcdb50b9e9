"""JSON as it is spelled: numbers keep their text, and a key that is there twice is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.system.files import read_text


@dataclass(frozen=True)
class Number:
    """A finite number, as the file spells it: 0.10 and 1e5 stay what they are."""

    text: str

    def __str__(self) -> str:
        return self.text


class _RepeatedKeyError(ValueError):
    """A key that an object has twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!a:.60} is there twice")


def parse(text: str) -> Any:
    """Parses one JSON value.

    Numbers are `Number`s of any length; NaN and infinities are floats.

    Raises:
        ValueError, RecursionError: when the text is not JSON, or an object has a key twice.
    """
    return json.loads(
        text, parse_int=Number, parse_float=Number, object_pairs_hook=_object_of_distinct_keys
    )


def _object_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return values


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """Reads JSON Lines as pairs of line number (from 1) and value; blank lines are skipped.

    Raises:
        RetainError: names the file and the line.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, parse(line)))
        except _RepeatedKeyError as error:
            raise RetainError(f"{path}, line {number}: {error}; remove one of them") from None
        except (ValueError, RecursionError) as error:
            raise RetainError(
                f"{path}, line {number}: not valid JSON ({error}); each line is one JSON object"
            ) from None
    return rows


def read_value(path: Path) -> Any:
    """Reads a file of one JSON value.

    Raises:
        RetainError: names the file, and the line of a key that is there twice.
    """
    text = read_text(path)
    try:
        return parse(text)
    except _RepeatedKeyError as error:
        line = _line_of_repeated_key(text)
        raise RetainError(f"{path}, line {line}: {error}; remove one of them") from None
    except (ValueError, RecursionError) as error:
        raise RetainError(f"{path}: not readable as JSON ({error}); restore it") from None


def _line_of_repeated_key(text: str) -> int:
    """Finds the line where the first key stands that its object has already; `text` is JSON."""
    objects: list[set[str]] = []
    last_text = None
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}:]', text, re.DOTALL):
        mark = token.group()
        if mark == "{":
            objects.append(set())
        elif mark == "}":
            objects.pop()
        elif mark != ":":
            last_text = token
        elif last_text is not None:
            key = json.loads(last_text.group())
            if key in objects[-1]:
                return text.count("\n", 0, last_text.start()) + 1
            objects[-1].add(key)
    return 1
