"""A stream: its tasks read and checked before anything is trained, then learned in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import (
    ExperimentConfig,
    TaskConfig,
    check,
    refuse_changes,
    stored_experiment,
)
from retain.learner.learner import Learner
from retain.metrics import trace
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG, SINGLE
from retain.system.progress import Progress
from retain.tasks import Example, Task
from retain.tasks.readers import (
    COLUMNS,
    read_hub,
    read_long_sequence,
    read_rows,
    read_superni,
    read_trace,
)

FOLDER_READERS: dict[str, tuple[Callable[[Path, str], list[Example]], str, Mapping[str, str]]] = {
    "superni": (read_superni, "rouge_l", {}),
    "long_sequence": (read_long_sequence, "exact_match", {}),
    "trace": (read_trace, "exact_answer", trace.TASK_METRICS),
}
"""The reader, the default metric, and the folders by name that have another one."""


def load_stream(configs: Iterable[TaskConfig | Mapping[str, Any]]) -> list[Task]:
    """Reads tasks in order, each described as in an experiment file.

    Raises:
        RetainError: naming the file and the line, or two tasks of one name.
    """
    tasks: list[Task] = []
    for number, config in enumerate(configs):
        task = read_task(check(TaskConfig, config, "load_stream", f"{number}."))
        if any(task.name == known.name for known in tasks):
            raise RetainError(f"tasks: two are named '{task.name}'; give one another 'name'")
        tasks.append(task)
    return tasks


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
        stored, method = stored_experiment(results.settings(run), run.path / CONFIG)
        refuse_changes(stored, experiment, folder, len(run.learned()))
        results.check_tasks(run, method.latest_only, "task.json")
        for index, task in enumerate(tasks[: len(run.learned())]):
            if not results.same_task(run, index, task):
                raise RetainError(
                    f"{folder}: its task {index + 1} was learned from other data than "
                    f"'{task.name}' has now; use another --output"
                )
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


def roll_back(folder: Path, task: str) -> list[str]:
    """Makes a run what it was right after a task; returns the names of the tasks that went.

    Raises:
        RetainError: when there is no such task, its weights are no longer kept, or what is to be
            kept is damaged.
    """
    run = results.open_run(folder)
    _, method = stored_experiment(results.settings(run), run.path / CONFIG)
    learned = run.learned()
    names: list[str] = []
    for place in learned:
        names.append(results.task_record(run, place)["name"])
        run.check(f"{place.relative_to(folder).as_posix()}/")
        if names[-1] == task:
            break
    else:
        raise RetainError(f"{folder}: no task '{task}'; name one of {', '.join(names)}")
    gone = [_name(run, place) for place in learned[len(names) :]]
    with run.locked():
        run.roll_back(len(names) - 1, method.latest_only, [SINGLE])
        results.write_scores(run)
    return gone


def complaints(run: RunDirectory) -> list[str]:
    """Reads every file of an opened run; returns a line for each that is not as it was written.

    Raises:
        RetainError: when this version cannot read its settings.
    """
    if damaged := run.damaged():
        return damaged
    _, method = stored_experiment(results.settings(run), run.path / CONFIG)
    return results.unlisted(run, method.latest_only)


def _name(run: RunDirectory, place: Path) -> str:
    """A learned task's, or its folder's where that is damaged."""
    try:
        return str(results.task_record(run, place)["name"])
    except RetainError:
        return place.name


def read_task(config: TaskConfig) -> Task:
    """Reads one configured task; what its splits lack is carved off train."""
    test: list[Example] | None
    columns: dict[str, str] = COLUMNS | {str(k): v for k, v in config.columns.items()}
    if config.reader in FOLDER_READERS:
        read, metric, by_name = FOLDER_READERS[config.reader]
        folder = Path(config.path)
        metric = by_name.get(folder.name, metric)
        if not folder.is_dir():
            raise RetainError(f"{folder}: no such folder; check the path")
        name, train, test = folder.name, read(folder, "train"), read(folder, "test")
    elif config.reader == "hub":
        name, metric = config.path.rpartition("/")[2], "exact_match"
        train = read_hub(config.path, "train", config.subset, columns)
        test = read_hub(config.path, config.test or "test", config.subset, columns)
    else:
        path = Path(config.path)
        name, metric, train = path.stem, "exact_match", read_rows(path, columns)
        test = None if config.test is None else read_rows(Path(config.test), columns)
    return Task.split(
        config.name or name,
        train,
        test,
        config.metric or metric,
        config.train_limit,
        config.model_dump()["training"],
        config.max_new_tokens,
    )
