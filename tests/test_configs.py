"""Every experiment in configs/ is valid, and names the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.config import check_method, read_experiment

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_valid(path: Path) -> None:
    experiment = read_experiment(path)
    check_method(experiment.method, str(path))
    assert experiment.tasks
    assert f"configs/{path.name}" in path.read_text() or path.stem == "demo"
