"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retain.testing import conftest as contract
from tests.command import call, settings, write_settings, write_tasks

_quick, backbone_folder = contract._quick, contract.backbone_folder


@pytest.fixture(scope="session")
def learned(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    """A folder with task files, `exp.yaml`, and the runs `run` and `pertask` of the task copy."""
    folder = tmp_path_factory.mktemp("learned")
    write_tasks(folder)
    values = settings(backbone_folder("llama"), "copy")
    write_settings(folder / "exp.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("run", "pertask"):
            name = "seqlora" if method == "run" else method
            done = call("run", "exp.yaml", "--output", method, "--set", f"method.name={name}")
            assert done.status == 0, done.err
    return folder


@pytest.fixture
def place(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as working directory, where training is forbidden."""

    def train(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    folder = tmp_path / "place"
    shutil.copytree(learned, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("retain.learner.lesson.fit", train)
    return folder
