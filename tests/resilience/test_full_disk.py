"""A limit on the size of files: one line, and the same numbers once it is lifted."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retain.testing.runs import content
from retain.testing.tiny import OPTIONS, TRAINING
from tests.command import Called, call, settings, write_settings, write_tasks
from tests.resilience.test_kill_everywhere import refused

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


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 3000, 10_000, 30_000])
def test_no_file_larger_than(whole: dict[str, bytes], tmp_path: Path, size: int) -> None:
    """The system itself refuses: what libraries write ends as cleanly as what we write."""
    with no_file_larger_than(size):
        done = resume(tmp_path / "run")
    refused(done, "cannot be written (")
    assert resume(tmp_path / "run").status == 0
    assert content(tmp_path / "run") == whole


@pytest.mark.usefixtures("whole")
def test_a_model_is_exported_whole_or_not_at_all(tmp_path: Path) -> None:
    """A library writes it."""
    export = ("export", "whole", tmp_path / "model", "--task", "copy")
    with no_file_larger_than(3000):
        refused(call(*export), "cannot be written (")
    assert not (tmp_path / "model").exists()
    assert call(*export).status == 0
