"""What a run directory says of its settings, tasks and scores, read without loading a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retain.errors import RetainError, first_line
from retain.metrics import continual
from retain.metrics.continual import Drops
from retain.runs import drops
from retain.runs.directory import RunDirectory
from retain.runs.manifest import MANIFEST
from retain.runs.records import (
    CONFIG,
    COST,
    ENVIRONMENT,
    EVALUATION,
    PREDICTIONS,
    SCORES,
    SINGLE,
    TASK,
    TEST,
    TRAINING,
    UNFINISHED,
    ZERO_SHOT,
    Cost,
    Row,
    Scores,
    Settings,
    Shape,
    TaskRecord,
    parse_record,
    predictions_file,
    read_record,
)
from retain.system.files import as_json, read_text
from retain.system.yaml_text import parse_yaml
from retain.tasks import Task

MOST_VALUES = 100_000
"""Values of a run's settings, its aliases written out."""

RECORDS = {EVALUATION, ZERO_SHOT, COST, TASK, TEST, TRAINING, PREDICTIONS}
"""Files and folders of a task that the learner writes; the others are the method's."""


@dataclass(frozen=True)
class TaskCost:
    """What a task took.

    Attributes:
        parameters: how many were trained.
        seconds: of learning it, without evaluation.
        bytes: of the files that the method keeps of it, as they are now: a whole model is the
            newest task's.
    """

    parameters: int
    seconds: float
    bytes: int


def open_run(path: Path) -> RunDirectory:
    """Opens a run and reads its manifest.

    Raises:
        RetainError: when the folder is no run.
    """
    run = RunDirectory(path)
    run.load_manifest()
    return run


# -- one file


def holds(run: RunDirectory, path: Path) -> bool:
    """Whether a file of the run is committed.

    Raises:
        RetainError: when it is, and is damaged.
    """
    if committed := run.is_committed(path):
        run.check(path.relative_to(run.path).as_posix())
    return committed


def below(run: RunDirectory, folder: Path) -> list[Path]:
    """The committed files below a folder of the run."""
    paths = (run.path / name for name in run.files)
    return [path for path in paths if path.is_relative_to(folder)]


def require(run: RunDirectory, path: Path) -> None:
    """Raises RetainError for a file that is damaged or not committed."""
    if not holds(run, path):
        raise RetainError(f"{path}: not listed in the run's manifest; restore the run from a copy")


def read(run: RunDirectory, path: Path, shape: type[Shape]) -> Shape | None:
    """Reads a committed JSON file, checked; None where there is none."""
    return read_record(shape, path) if holds(run, path) else None


def read_required(run: RunDirectory, path: Path, shape: type[Shape]) -> Shape:
    """Reads a committed JSON file that every run has.

    Raises:
        RetainError: naming the file when it is damaged or not listed.
    """
    require(run, path)
    return read_record(shape, path)


# -- settings


def experiment_values(run: RunDirectory) -> dict[str, Any]:
    """The run's resolved experiment, as plain values for `ExperimentConfig`.

    Raises:
        RetainError: naming the file when it is damaged, or no experiment.
    """
    values = _config(run)
    parse_record(Settings, values, run.path / CONFIG)
    return values


def settings(run: RunDirectory) -> Settings:
    """The settings that are read without loading a model.

    Raises:
        RetainError: naming the file when it is damaged, or no experiment.
    """
    return parse_record(Settings, _config(run), run.path / CONFIG)


def method_options(run: RunDirectory, shape: type[Shape]) -> Shape:
    """The options of the run's method, as a record of the method's own.

    Raises:
        RetainError: naming the file when it is damaged, or has other options.
    """
    return parse_record(shape, experiment_values(run)["method"], run.path / CONFIG)


def _config(run: RunDirectory) -> Any:
    path = run.path / CONFIG
    require(run, path)
    try:
        return parse_yaml(read_text(path), MOST_VALUES)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or first_line(error)
        raise RetainError(f"{path}: not valid YAML ({problem}); restore it from a copy") from None


def environment(run: RunDirectory) -> dict[str, str]:
    """Versions of libraries, and fingerprints of the backbone, that the run was begun with.

    Raises:
        RetainError: naming the file when it is damaged, or not listed.
    """
    return read_required(run, run.path / ENVIRONMENT, dict[str, str])


# -- damage


def unlisted(run: RunDirectory) -> list[str]:
    """Returns a line for each file in a learned task's folder that would be read unchecked."""
    complaints = []
    for folder in run.learned():
        unfinished = () if run.is_committed(folder / EVALUATION) else (EVALUATION, PREDICTIONS)
        complaints += [
            f"{path}: not listed in {MANIFEST}; restore the manifest that lists it, or move this "
            "file away"
            for path in run.own_files(folder, UNFINISHED)
            if not run.is_committed(path)
            and not run.is_going(path)
            and path.relative_to(folder).parts[0] not in unfinished
        ]
    return complaints


def check_files(run: RunDirectory, latest_only: Iterable[str], name: str = "") -> None:
    """Checks the files of learned tasks, oldest task first.

    Args:
        run: an opened run.
        latest_only: files of which the method keeps the newest task's only.
        name: of the files that are checked, in each task's folder; all by default.

    Raises:
        RetainError: naming the first damaged file, and the task to roll back to.
    """
    learned = run.learned()
    for index, folder in enumerate(learned):
        try:
            run.check(f"{folder.relative_to(run.path).as_posix()}/{name}")
        except RetainError as error:
            if not index or run.superseded(index - 1, latest_only):
                raise RetainError(f"{error}; no earlier state is kept") from None
            earlier = shlex.quote(task_record(run, learned[index - 1]).name)
            command = f"retain rollback {shlex.quote(str(run.path))} --to {earlier}"
            raise RetainError(f"{error}, or learn on from an earlier task: {command}") from None


# -- tasks and scores


def rows(run: RunDirectory) -> list[Row]:
    """Rows of the score matrix, one per learned and scored task, oldest first.

    Raises:
        RetainError: when a row is damaged, or is not one of as many tasks.
    """
    read_so_far: list[Row] = []
    for folder in run.learned():
        row = read(run, folder / EVALUATION, Row)
        if row is not None:
            read_so_far.append(row)
            sampled = {sample.task for sample in row.samples}
            measured = {j for j, score in enumerate(row.scores) if score is not None}
            if not len(row.scores) == len(row.routing) == len(read_so_far) or (
                sampled - measured or len(sampled) < len(row.samples)
            ):
                raise RetainError(
                    f"{folder / EVALUATION}: not a row of {len(read_so_far)} tasks; restore it "
                    "from a copy"
                )
    return read_so_far


def task_record(run: RunDirectory, folder: Path) -> TaskRecord:
    """The description of a learned task, by its folder."""
    return read_required(run, folder / TASK, TaskRecord)


def scores(run: RunDirectory, single: Sequence[float] | None = None) -> Scores:
    """Names, score matrix and metrics, computed from the tasks' own files: what scores.json holds.

    Args:
        run: an opened run.
        single: of each task the score of a model trained on it alone; None takes what was given
            to `write_scores` before.
    """
    all_rows = rows(run)
    matrix = [row.scores for row in all_rows]
    learned = run.learned()[: len(matrix)]
    if single is None:
        single = read(run, run.path / SINGLE, list[float])
    if single is not None and len(single) != len(matrix):
        single = None  # given for a shorter stream
    zero_shot = [read(run, folder / ZERO_SHOT, float) for folder in learned]
    lost = drops.dropped(run, all_rows)
    last_samples = [all_rows[-1].sample(j) for j in range(len(matrix))]
    last_errors = [sample.error if sample else None for sample in last_samples]
    return Scores(
        tasks=[task_record(run, folder).name for folder in learned],
        matrix=matrix,
        samples=[row.samples for row in all_rows],
        single=None if single is None else list(single),
        zero_shot=zero_shot,
        metrics=continual.summary(matrix, single, zero_shot, lost),
        standard_errors=continual.standard_errors(last_errors, lost),
    )


def dropped(run: RunDirectory) -> list[Drops]:
    """What every scored task but the newest has lost, over the same test examples.

    Raises:
        RetainError: as in `rows`, and when predictions that it needs are damaged.
    """
    return drops.dropped(run, rows(run))


def final_scores(run: RunDirectory) -> Scores:
    """As `scores`, of all that was learned.

    Raises:
        RetainError: when the newest task is not scored yet.
    """
    all_scores = scores(run)
    if not all_scores.matrix or len(all_scores.matrix) < len(run.learned()):
        raise RetainError(
            f"{run.path}: its newest task is not scored yet; continue with retain run --resume, or "
            "with the same retain learn"
        )
    return all_scores


def write_scores(run: RunDirectory, single: Sequence[float] | None = None) -> None:
    """Writes scores.json, and new single-task scores; the caller holds the run's lock."""
    contents = {} if single is None else {run.path / SINGLE: as_json(single)}
    contents[run.path / SCORES] = as_json(scores(run, single).model_dump())
    run.write(contents)


def costs(run: RunDirectory) -> list[TaskCost]:
    """What each learned task took, oldest first."""
    return [_cost(run, folder) for folder in run.learned()]


def _cost(run: RunDirectory, folder: Path) -> TaskCost:
    cost = read_required(run, folder / COST, Cost)
    kept = [p for p in below(run, folder) if p.relative_to(folder).parts[0] not in RECORDS]
    return TaskCost(cost.parameters, cost.seconds, sum(path.stat().st_size for path in kept))


def newest_predictions(run: RunDirectory) -> dict[str, Path]:
    """Files of the newest predictions by task; one that cannot be forgotten is decoded once.

    They may be of a sample of the test examples: `Prediction.example` then says which. A task that
    the last row has left out is left out here.
    """
    folders = run.learned()
    last_row = (rows(run) or [Row(scores=[], routing=[])])[-1].scores
    newest = {}
    for j, folder in enumerate(folders):
        left_out = j < len(last_row) and last_row[j] is None
        since = len(last_row) if left_out else j  # older answers are not the newest model's
        paths = [predictions_file(later, j) for later in folders[since:]]
        committed = [path for path in paths if run.is_committed(path)]
        if committed and holds(run, committed[-1]):
            newest[task_record(run, folder).name] = committed[-1]
    return newest


def same_task(run: RunDirectory, index: int, task: Task) -> bool:
    """Whether the run's task `index` was learned from, and is tested on, exactly these examples."""
    stored = task_record(run, run.learned()[index])
    return stored.name == task.name and stored.fingerprints.model_dump() == task.fingerprints()


# -- comparing runs


def single_scores(run: RunDirectory, pertask: Path) -> list[float]:
    """Scores of one model per task, in the order of `run`, from a pertask run.

    Raises:
        RetainError: when that run is of another method, or lacks a task on the same test data.
    """
    other = open_run(pertask)
    method = settings(other).method.name
    if method != "pertask":
        raise RetainError(f"{pertask}: its method is {method}; give a run of pertask")
    known = dict(zip(comparable_keys(other), rows(other), strict=False))
    single: list[float] = []
    for key in comparable_keys(run):
        score = known[key].scores[-1] if key in known else None
        if score is None:
            raise RetainError(
                f"{pertask}: has no task '{key[0]}' with the same test data, metric, prompt, "
                "generation length and backbone; learn it there first"
            )
        single.append(score)
    return single


def comparable_keys(run: RunDirectory) -> list[tuple[str, ...]]:
    """What two runs must share, task by task, for their scores to compare; the name comes first."""
    values = settings(run)
    keys: list[tuple[str, ...]] = []
    for folder in run.learned():
        task = task_record(run, folder)
        length = task.max_new_tokens or values.evaluation.max_new_tokens
        how = [values.backbone.name, values.evaluation.limit, length, values.prompt]
        shared = json.dumps(how, sort_keys=True)
        keys.append((task.name, task.fingerprints.test, task.scorer, shared))
    return keys
