"""What a run directory says about its scores, read without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from retain.errors import RetainError
from retain.metrics import continual
from retain.store import RunDirectory, read_json, write_json

EVALUATION = "evaluation.json"
ZERO_SHOT = "zero_shot.json"


def open_run(path: Path) -> RunDirectory:
    """Reads a run's manifest.

    Raises:
        RetainError: when the folder is no run.
    """
    run = RunDirectory(path)
    run.load_manifest()
    return run


def settings(run: RunDirectory) -> dict[str, Any]:
    """The run's resolved experiment, as plain values."""
    run.check("config.yaml")
    values: dict[str, Any] = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    return values


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Per learned and evaluated task: `scores` and `routing` of every task so far."""
    found = []
    for folder in run.learned():
        name = (folder / EVALUATION).relative_to(run.path).as_posix()
        if name in run.files:
            run.check(name)
            found.append(read_json(folder / EVALUATION))
    return found


def scores(run: RunDirectory, single: list[float] | None = None) -> dict[str, Any]:
    """What scores.json holds: task names, score matrix, and the metrics computed from it.

    Beside them, as lists over tasks: the single-task scores that forward transfer compares with,
    and the zero-shot scores, taken just before a task was learned.

    Args:
        run: an opened run.
        single: of each task the score of a model trained on it alone; None keeps what was given.
    """
    matrix = [row["scores"] for row in rows(run)]
    names = [_task(run, folder)["name"] for folder in run.learned()[: len(matrix)]]
    path = run.path / "scores.json"
    if single is None and path.exists():
        single = read_json(path).get("single")
    if single is not None and len(single) != len(matrix):
        single = None  # given for a shorter stream
    before = [_zero_shot(run, folder) for folder in run.learned()[: len(matrix)]]
    return {
        "tasks": names,
        "matrix": matrix,
        "single": single,
        "zero_shot": before,
        "metrics": continual.summary(matrix, single, before),
    }


def write_scores(run: RunDirectory, single: list[float] | None = None) -> None:
    """Renews scores.json; the caller holds the run's lock."""
    path = run.path / "scores.json"
    write_json(path, scores(run, single))
    run.commit([path])


def single_scores(run: RunDirectory, pertask: Path) -> list[float]:
    """Scores of one model per task, in the order of `run`, from a pertask run.

    Raises:
        RetainError: when that run is of another method, or lacks a task on the same test data.
    """
    other = open_run(pertask)
    method = settings(other)["method"]["name"]
    if method != "pertask":
        raise RetainError(f"{pertask}: its method is {method}; give a run of pertask")
    known = dict(zip(_test_sets(other), rows(other), strict=False))
    found = []
    for name, test, limit in _test_sets(run):
        row = known.get((name, test, limit))
        if row is None:
            raise RetainError(f"{pertask}: has no task '{name}' scored on the same test data")
        found.append(float(row["scores"][-1]))
    return found


def _zero_shot(run: RunDirectory, folder: Path) -> float | None:
    name = (folder / ZERO_SHOT).relative_to(run.path).as_posix()
    if name not in run.files:
        return None
    run.check(name)
    return float(read_json(folder / ZERO_SHOT)["score"])


def _task(run: RunDirectory, folder: Path) -> dict[str, Any]:
    run.check((folder / "task.json").relative_to(run.path).as_posix())
    description: dict[str, Any] = read_json(folder / "task.json")
    return description


def _test_sets(run: RunDirectory) -> list[tuple[str, str, int | None]]:
    """What identifies each task's test data: name, content, and how much of it was used."""
    limit = settings(run)["evaluation"]["limit"]
    tasks = [_task(run, folder) for folder in run.learned()]
    return [(task["name"], task["fingerprints"]["test"], limit) for task in tasks]
