"""A disk that refuses in the middle of a run: one line, and the same numbers once there is room."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from retain.testing.runs import content
from retain.testing.tiny import OPTIONS, TRAINING
from tests.command import Called, call, settings, write_settings, write_tasks

METHODS = ("sapt",)


@pytest.fixture(scope="module", params=METHODS)
def whole(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    backbone_folder: Callable[[str], Path],
) -> Iterator[dict[str, bytes]]:
    """An experiment in the working directory, and the files of its uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tasks(folder)
    values = settings(backbone_folder("llama"), "copy", "letter")
    values["method"] = {"name": request.param, **OPTIONS[request.param]}
    values["training"] = TRAINING
    write_settings(folder / "exp.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "exp.yaml", "--output", "whole").status == 0
        yield content(Path("whole"))


def resume(folder: Path) -> Called:
    return call("run", "exp.yaml", "--output", folder, "--resume")


def refused(done: Called, cause: str) -> None:
    """Asserts that the run ended with one line on the disk, after what it told before."""
    assert (done.status, done.out) == (2, ""), done
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.err.endswith(f"{line}\n"), done.err
    assert line.startswith("error: /"), line
    assert f"cannot be written ({cause}" in line


def test_full_at_any_write(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full from its 1st write on, resumed, full from the 2nd from there on, …, to the end."""
    left = 0

    def full(call: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return write

    for name in ("fsync", "mkdir"):
        monkeypatch.setattr(os, name, full(getattr(os, name)))
    for writes in count():
        left = writes
        done = resume(tmp_path / "run")
        if done.status == 0:
            break
        refused(done, "No space left on device")
    assert writes > 10
    assert content(tmp_path / "run") == whole


@pytest.mark.parametrize("size", [0, 1000, 3000, 10_000, 30_000])
def test_no_file_larger_than(whole: dict[str, bytes], tmp_path: Path, size: int) -> None:
    """The system itself refuses: what libraries write ends as cleanly as what we write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        done = resume(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(done, "")
    assert resume(tmp_path / "run").status == 0
    assert content(tmp_path / "run") == whole
