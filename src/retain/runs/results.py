"""What a run directory says about its scores, read without loading a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from retain.errors import RetainError
from retain.system.files import parse_yaml, read_text, write_json
from retain.metrics import continual
from retain.runs.records import (
    CONFIG,
    COST,
    ENVIRONMENT,
    EVALUATION,
    PREDICTIONS,
    QUALITY,
    SCORES,
    SINGLE,
    TASK,
    TEST,
    TRAINING,
    UNFINISHED,
    ZERO_SHOT,
    Quality,
    Row,
    Settings,
    TaskRecord,
    hold_to,
    predictions_file,
    read_record,
)
from retain.runs.directory import MANIFEST, RunDirectory
from retain.tasks import Task

RECORDS = {EVALUATION, ZERO_SHOT, COST, QUALITY, TASK, TEST, TRAINING, PREDICTIONS}
"""What a task's folder holds beside what the method keeps of the task."""


def open_run(path: Path) -> RunDirectory:
    """Reads a run's manifest.

    Raises:
        RetainError: when the folder is no run.
    """
    run = RunDirectory(path)
    run.load_manifest()
    return run


def holds(run: RunDirectory, path: Path) -> bool:
    """Whether a file of the run is committed.

    Raises:
        RetainError: when it is, and is damaged.
    """
    if committed := run.commits(path):
        run.check(path.relative_to(run.path).as_posix())
    return committed


def below(run: RunDirectory, folder: Path) -> list[Path]:
    """The committed files below a folder of the run."""
    paths = (run.path / name for name in run.files)
    return [path for path in paths if path.is_relative_to(folder)]


def read(run: RunDirectory, path: Path, shape: Any) -> Any:
    """A committed JSON file, checked; None where there is none."""
    return read_record(shape, path) if holds(run, path) else None


def settings(run: RunDirectory) -> dict[str, Any]:
    """The run's resolved experiment, as plain values.

    Raises:
        RetainError: naming the file when it is damaged, or no experiment.
    """
    path = run.path / CONFIG
    if not holds(run, path):
        raise RetainError(f"{path}: not listed in the run's manifest; restore the run from a copy")
    try:
        values = parse_yaml(read_text(path))
    except yaml.YAMLError:
        raise RetainError(f"{path}: not valid YAML; restore it from a copy") from None
    hold_to(Settings, values, path)
    found: dict[str, Any] = values
    return found


def environment(run: RunDirectory) -> dict[str, str]:
    """What the run was made with.

    Raises:
        RetainError: naming the file when it is damaged, or not listed.
    """
    path = run.path / ENVIRONMENT
    found: dict[str, str] | None = read(run, path, dict[str, str])
    if found is None:
        raise RetainError(f"{path}: not listed in the run's manifest; restore the run from a copy")
    return found


def unlisted(run: RunDirectory, latest_only: Iterable[str]) -> list[str]:
    """A line for each file in a learned task's folder that would be read unchecked.

    Args:
        run: an opened run.
        latest_only: which files its method keeps of the newest task only: a kill may have left
            those of an older one.
    """
    complaints = []
    learned = run.learned()
    for folder in learned:
        passing = set(latest_only) if folder != learned[-1] else set()
        if not run.commits(folder / EVALUATION):
            passing |= {EVALUATION, PREDICTIONS}  # are on their way
        complaints += [
            f"{path}: not listed in {MANIFEST}; restore the one that lists it, or move this away"
            for path in run.own_files(folder, UNFINISHED)
            if not run.commits(path) and path.relative_to(folder).parts[0] not in passing
        ]
    return complaints


def check_tasks(run: RunDirectory, latest_only: Iterable[str], name: str = "") -> None:
    """Looks for damage in what was learned, oldest task first.

    Args:
        run: an opened run.
        latest_only: which files its method keeps of the newest task only.
        name: of the files that are looked at, in each task's folder; all by default.

    Raises:
        RetainError: naming the first damaged file, and the task that can be gone back to.
    """
    learned = run.learned()
    for index, folder in enumerate(learned):
        try:
            run.check(f"{folder.relative_to(run.path).as_posix()}/{name}")
        except RetainError as error:
            if not index or run.superseded(index - 1, latest_only):
                raise RetainError(f"{error}; no earlier state is kept") from None
            earlier = shlex.quote(task_record(run, learned[index - 1])["name"])
            command = f"retain rollback {shlex.quote(str(run.path))} --to {earlier}"
            raise RetainError(f"{error}, or learn on from an earlier task: {command}") from None


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Per learned and evaluated task: `scores` and `routing` of every task so far."""
    found = []
    for folder in run.learned():
        row = read(run, folder / EVALUATION, Row)
        if row is not None:
            found.append(row)
            if not len(row["scores"]) == len(row["routing"]) == len(found):
                raise RetainError(
                    f"{folder / EVALUATION}: not a row of {len(found)} tasks; restore it from a "
                    "copy"
                )
    return found


def task_record(run: RunDirectory, folder: Path) -> dict[str, Any]:
    """What a learned task's folder says of it."""
    record: dict[str, Any] = read(run, folder / TASK, TaskRecord)
    return record


def scores(run: RunDirectory, single: Sequence[float] | None = None) -> dict[str, Any]:
    """What scores.json holds: task names, score matrix, and the metrics computed from it.

    Beside them, as lists over tasks: the single-task scores that forward transfer compares with,
    and the zero-shot scores, taken just before a task was learned.

    Args:
        run: an opened run.
        single: of each task the score of a model trained on it alone; None takes what was given
            to `write_scores` before.
    """
    matrix = [row["scores"] for row in rows(run)]
    learned = run.learned()[: len(matrix)]
    if single is None:
        single = read(run, run.path / SINGLE, list[float])
    if single is not None and len(single) != len(matrix):
        single = None  # given for a shorter stream
    before = [read(run, folder / ZERO_SHOT, float) for folder in learned]
    return {
        "tasks": [task_record(run, folder)["name"] for folder in learned],
        "matrix": matrix,
        "single": single,
        "zero_shot": before,
        "metrics": continual.summary(matrix, single, before),
    }


def costs(run: RunDirectory) -> list[dict[str, float]]:
    """Per learned task: `parameters` that learned it, `seconds` of learning, `bytes` it left.

    Bytes are of the files that the method keeps, as they are now: whole models are the newest
    task's.
    """
    found = []
    for folder in run.learned():
        # A run of an earlier version has none.
        cost = read(run, folder / COST, dict[str, float]) or {}
        own = below(run, folder)
        kept = [path for path in own if path.relative_to(folder).parts[0] not in RECORDS]
        found.append({**cost, "bytes": sum(path.stat().st_size for path in kept)})
    return found


def quality(run: RunDirectory, folder: Path) -> dict[str, float | None]:
    """What was measured of a task's pseudo-samples; empty where nothing was."""
    return read(run, folder / QUALITY, Quality) or {}


def final_scores(run: RunDirectory) -> dict[str, Any]:
    """As `scores`, of all that was learned.

    Raises:
        RetainError: when the newest task is not scored yet.
    """
    found = scores(run)
    if not found["matrix"] or len(found["matrix"]) < len(run.learned()):
        raise RetainError(
            f"{run.path}: its newest task is not scored yet; go on with retain run --resume, or "
            "with the same retain learn"
        )
    return found


def write_scores(run: RunDirectory, single: Sequence[float] | None = None) -> None:
    """Renews scores.json, and keeps new single-task scores; the caller holds the run's lock."""
    if single is not None:
        write_json(run.path / SINGLE, single)
        run.commit([run.path / SINGLE])
    path = run.path / SCORES
    write_json(path, scores(run))
    run.commit([path])


def newest_predictions(run: RunDirectory) -> dict[str, Path]:
    """By task the file of its newest predictions; one that cannot be forgotten is decoded once."""
    folders = run.learned()
    found = {}
    for j, own in enumerate(folders):
        paths = [predictions_file(folder, j) for folder in folders[j:]]
        known = [path for path in paths if run.commits(path)]
        if known and holds(run, known[-1]):
            found[task_record(run, own)["name"]] = known[-1]
    return found


def same_task(run: RunDirectory, index: int, task: Task) -> bool:
    """Whether the run's task `index` was learned from, and is tested on, exactly these examples."""
    stored = task_record(run, run.learned()[index])
    return (stored["name"], stored["fingerprints"]) == (task.name, task.fingerprints())


def single_scores(run: RunDirectory, pertask: Path) -> list[float]:
    """Scores of one model per task, in the order of `run`, from a pertask run.

    Raises:
        RetainError: when that run is of another method, or lacks a task on the same test data.
    """
    other = open_run(pertask)
    method = settings(other)["method"]["name"]
    if method != "pertask":
        raise RetainError(f"{pertask}: its method is {method}; give a run of pertask")
    known = dict(zip(scored(other), rows(other), strict=False))
    found = []
    for key in scored(run):
        if key not in known:
            raise RetainError(
                f"{pertask}: has no task '{key[0]}' with the same test data, metric, prompt, "
                "generation length and backbone; learn it there first"
            )
        found.append(float(known[key]["scores"][-1]))
    return found


def scored(run: RunDirectory) -> list[tuple[str, ...]]:
    """What two runs must share, task by task, for their scores to compare; the name comes first."""
    values = settings(run)
    usual = values["evaluation"]["max_new_tokens"]
    found: list[tuple[str, ...]] = []
    for folder in run.learned():
        task = task_record(run, folder)
        length = task.get("max_new_tokens") or usual
        how = [values["evaluation"]["limit"], length, values["prompt"]]
        shared = json.dumps([values["backbone"]["name"], *how], sort_keys=True)
        found.append((task["name"], task["fingerprints"]["test"], task["metric"], shared))
    return found
