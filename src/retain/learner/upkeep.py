"""Upkeep of a finished run: verified, rolled back."""

from __future__ import annotations

from pathlib import Path

from retain.errors import RetainError
from retain.experiment.config import stored_experiment
from retain.runs import results
from retain.runs.compacted import compacted_file
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, SINGLE


def roll_back(folder: Path, task: str) -> list[str]:
    """Deletes all tasks after `task` from a run, and compactions made since; returns their names.

    Raises:
        RetainError: when there is no such task, its weights are no longer kept, or a file that is
            to stay is damaged.
    """
    run = results.open_run(folder)
    _, method = stored_experiment(results.experiment_values(run), run.path / CONFIG)
    learned = run.learned()
    names: list[str] = []
    for task_folder in learned:
        names.append(results.task_record(run, task_folder).name)
        run.check(f"{task_folder.relative_to(folder).as_posix()}/")
        if names[-1] == task:
            break
    else:
        raise RetainError(f"{folder}: no task '{task}'; name one of {', '.join(names)}")
    deleted = [_name(run, task_folder) for task_folder in learned[len(names) :]]
    since = [compacted_file(run, index) for index in range(len(names) - 1, len(learned))]
    compactions = [path.relative_to(folder).as_posix() for path in since if run.is_committed(path)]
    with run.locked():
        run.roll_back(len(names) - 1, method.traits.latest_only, [SINGLE, *compactions])
        results.write_scores(run)
    return deleted + compactions


def verify(run: RunDirectory) -> list[str]:
    """Verifies every file of an opened run; returns one line for each that is damaged or missing.

    Raises:
        RetainError: when this version cannot read the run's settings.
    """
    if damaged := run.damaged():
        return damaged
    stored_experiment(results.experiment_values(run), run.path / CONFIG)
    return results.unlisted(run)


def _name(run: RunDirectory, task_folder: Path) -> str:
    """Returns a learned task's name, or that of its folder if its record is damaged."""
    try:
        return results.task_record(run, task_folder).name
    except RetainError:
        return task_folder.name
