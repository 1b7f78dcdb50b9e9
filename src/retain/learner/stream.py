"""Operations on a whole stream: learn, resume, roll back and verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, stored_experiment
from retain.experiment.resume import refuse_changes, settled
from retain.learner.check_memory import refuse_what_cannot_fit
from retain.learner.learner import Learner
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, TASK
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
        results.check_files(run, method.traits.latest_only, TASK)
        refuse_other_data(run, tasks)
        remaining, continued = tasks[len(run.learned()) :], settled(experiment, stored)
        refuse_what_cannot_fit(continued, remaining)
        # The user's file decides, not the stored run, which may come from elsewhere.
        trusted = experiment.backbone.trust_remote_code
        learner = Learner.load(folder, progress, trust_remote_code=trusted)
        learner.take_over(continued, remaining)
    else:
        refuse_what_cannot_fit(experiment, tasks)
        learner, remaining = Learner.from_config(experiment, progress), tasks
        learner.check_tasks(remaining)
    learn_tasks(learner, remaining)
    return learner


def learn_tasks(learner: Learner, tasks: Sequence[Task]) -> None:
    """Learns tasks that are checked, and completes the scores."""
    for task in tasks:
        learner.learn(task, more=task is not tasks[-1])
    learner.finish_evaluation()


def refuse_other_data(run: RunDirectory, tasks: Sequence[Task]) -> None:
    """Raises a RetainError if a learned task has other data now than when it was learned."""
    for index, task in enumerate(tasks[: len(run.learned())]):
        if not results.same_task(run, index, task):
            raise RetainError(
                f"{run.path}: its task {index + 1} was learned from other data than "
                f"'{task.name}' has now; use another --output"
            )
