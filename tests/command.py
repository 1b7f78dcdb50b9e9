"""Calls of the command line in this process, and small experiments for them."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from retain.cli import main
from retain.methods import METHODS, registry
from retain.runs.environment import PLUGINS
from retain.system.files import write_jsonl
from retain.testing.tiny import make_task


class Called(NamedTuple):
    """The result of a command: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def call(*arguments: str | Path, stdin: bytes = b"") -> Called:
    """Runs `retain ARGUMENTS…` in this process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        patch.object(sys, "argv", ["retain", *map(str, arguments)]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Called(status, out.getvalue(), err.getvalue())


def write_tasks(folder: Path) -> None:
    """Writes `<task>.jsonl` and `<task>.test.jsonl` of the tiny tasks."""
    for name in ("copy", "constant", "letter"):
        task = make_task(name)
        rows = [example.as_row() for example in (*task.train, *task.dev)]
        write_jsonl(folder / f"{name}.jsonl", rows)
        write_jsonl(folder / f"{name}.test.jsonl", [example.as_row() for example in task.test])


def settings(backbone: Path, *tasks: str) -> dict[str, Any]:
    """Returns a valid, fast experiment on the files of `write_tasks`."""
    return {
        "backbone": {"name": str(backbone)},
        "method": {"name": "seqlora", "rank": 2},
        "tasks": [{"path": f"{name}.jsonl", "test": f"{name}.test.jsonl"} for name in tasks],
        "training": {"max_steps": 2, "per_device_train_batch_size": 4},
        "evaluation": {"max_new_tokens": 5, "limit": 3},
        "output": "out",
    }


def write_settings(path: Path, values: Mapping[str, Any]) -> Path:
    """Writes the experiment file."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Reads all files, and all folders as None, by their relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(*arguments: str | Path, says: list[str], stdin: bytes = b"") -> None:
    """Asserts that a command fails with status 2 and one `error:` line, and changes no file."""
    before = snapshot(Path.cwd())
    check(call(*arguments, stdin=stdin), says)
    assert snapshot(Path.cwd()) == before


def check(done: Called, says: list[str]) -> None:
    assert done.status == 2, done
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith("error: ")
    for part in says:
        assert part in done.err


def put(values: Any, field: str, value: Any) -> None:
    """Sets a nested field of an experiment; ... deletes it."""
    *path, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in path:
        values = values[part]
    if value is ...:
        del values[last]
    else:
        values[last] = value


def forget_plugins() -> None:
    """Removes every method from outside of the package: a new process would have none."""
    for name, source in list(registry._SOURCES.items()):
        del METHODS[name], registry._SOURCES[name]
        sys.modules.pop(source, None)
    PLUGINS.clear()
