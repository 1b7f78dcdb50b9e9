"""Operations on a whole stream: learn, resume, roll back and verify."""

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
    """Learns a stream of tasks in `experiment.output`.

    Args:
        experiment: the settings.
        tasks: all tasks of the stream, in order.
        resume: continues the run in the folder, if there is one.
        progress: receives messages and progress.

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
        # The user's file decides, not the stored run, which may come from elsewhere.
        trusted = experiment.backbone.trust_remote_code
        learner = Learner.load(folder, progress, trust_remote_code=trusted)
        remaining = tasks[len(learner.tasks) :]
        learner.take_over(experiment, remaining)
    else:
        learner, remaining = Learner.from_config(experiment, progress), tasks
        learner.check_tasks(remaining)
    for task in remaining:
        learner.learn(task, more=task is not remaining[-1])
    learner.finish_evaluation()
    return learner


def refuse_other_data(run: RunDirectory, tasks: Sequence[Task]) -> None:
    """Raises a RetainError if a learned task has other data now than when it was learned."""
    for index, task in enumerate(tasks[: len(run.learned())]):
        if not results.same_task(run, index, task):
            raise RetainError(
                f"{run.path}: its task {index + 1} was learned from other data than "
                f"'{task.name}' has now; use another --output"
            )


def roll_back(folder: Path, task: str) -> list[str]:
    """Deletes all tasks after `task` from a run; returns the names of the deleted tasks.

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
    with run.locked():
        run.roll_back(len(names) - 1, method.traits.latest_only, [SINGLE])
        results.write_scores(run)
    return deleted


def complaints(run: RunDirectory) -> list[str]:
    """Verifies every file of an opened run; returns one line for each that is damaged or missing.

    Raises:
        RetainError: when this version cannot read the run's settings.
    """
    if damaged := run.damaged():
        return damaged
    _, method = stored_experiment(results.experiment_values(run), run.path / CONFIG)
    return results.unlisted(run, method.traits.latest_only)


def _name(run: RunDirectory, task_folder: Path) -> str:
    """Returns a learned task's name, or that of its folder if its record is damaged."""
    try:
        return results.task_record(run, task_folder).name
    except RetainError:
        return task_folder.name
