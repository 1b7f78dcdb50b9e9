"""A whole stream: learned in order, or what is left of it; rolled back; verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, refuse_changes, stored_experiment
from retain.learner.learner import Learner
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, SINGLE
from retain.system.progress import Progress
from retain.tasks import Task


def learn_stream(
    experiment: ExperimentConfig,
    tasks: Sequence[Task],
    resume: bool = False,
    progress: Progress | None = None,
) -> Learner:
    """Learns a stream in `experiment.output`, or with `resume` what is left of it.

    Raises:
        RetainError: when the folder holds a run and `resume` is off, or when the run was made under
            other settings or from other data.
    """
    folder = Path(experiment.output or "runs/run")
    if resume and RunDirectory(folder).exists:
        run = results.open_run(folder)
        stored, method = stored_experiment(results.experiment_values(run), run.path / CONFIG)
        refuse_changes(stored, experiment, folder, len(run.learned()))
        results.check_tasks(run, method.traits.latest_only, "task.json")
        refuse_other_data(run, tasks)
        trusted = experiment.backbone.trust_remote_code  # by the user's own file
        learner = Learner.load(folder, progress, trust_remote_code=trusted)
        left = tasks[len(learner.tasks) :]
        learner.take_over(experiment, left)
    else:
        learner, left = Learner.from_config(experiment, progress), tasks
        learner.check_tasks(left)
    for task in left:
        learner.learn(task, more=task is not left[-1])
    learner.finish_evaluation()
    return learner


def refuse_other_data(run: RunDirectory, tasks: Sequence[Task]) -> None:
    """Raises RetainError when a task was learned from other data than it has now."""
    for index, task in enumerate(tasks[: len(run.learned())]):
        if not results.same_task(run, index, task):
            raise RetainError(
                f"{run.path}: its task {index + 1} was learned from other data than "
                f"'{task.name}' has now; use another --output"
            )


def roll_back(folder: Path, task: str) -> list[str]:
    """Makes a run what it was right after a task; returns the names of the tasks that went.

    Raises:
        RetainError: when there is no such task, its weights are no longer kept, or what is to be
            kept is damaged.
    """
    run = results.open_run(folder)
    _, method = stored_experiment(results.experiment_values(run), run.path / CONFIG)
    learned = run.learned()
    names: list[str] = []
    for place in learned:
        names.append(results.task_record(run, place).name)
        run.check(f"{place.relative_to(folder).as_posix()}/")
        if names[-1] == task:
            break
    else:
        raise RetainError(f"{folder}: no task '{task}'; name one of {', '.join(names)}")
    gone = [_name(run, place) for place in learned[len(names) :]]
    with run.locked():
        run.roll_back(len(names) - 1, method.traits.latest_only, [SINGLE])
        results.write_scores(run)
    return gone


def complaints(run: RunDirectory) -> list[str]:
    """Reads every file of an opened run; returns a line for each that is not as it was written.

    Raises:
        RetainError: when this version cannot read its settings.
    """
    if damaged := run.damaged():
        return damaged
    _, method = stored_experiment(results.experiment_values(run), run.path / CONFIG)
    return results.unlisted(run, method.traits.latest_only)


def _name(run: RunDirectory, place: Path) -> str:
    """A learned task's, or its folder's where that is damaged."""
    try:
        return results.task_record(run, place).name
    except RetainError:
        return place.name
