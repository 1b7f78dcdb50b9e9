"""The files that the learner writes for a run and for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from retain.backbone import Backbone
from retain.experiment.config import ExperimentConfig
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.environment import template_of, versions
from retain.runs.records import (
    CONFIG,
    COST,
    ENVIRONMENT,
    TASK,
    TEST,
    TRAINING,
    UNFINISHED,
    Counts,
    Fingerprints,
    TaskRecord,
)
from retain.system.files import as_json, read_jsonl, write_json, write_jsonl
from retain.tasks import Task
from retain.tasks.rows import parse_row
from retain.training.config import FREE

if TYPE_CHECKING:  # what trains imports Trainer, which answering does without
    from retain.learner.lesson import Lesson


def start_run(
    run: RunDirectory, experiment: ExperimentConfig, fingerprints: Mapping[str, str]
) -> None:
    """Writes the environment and settings of a new run; does nothing if the run exists."""
    if run.exists:
        return
    environment = as_json({**versions(), **fingerprints})
    run.write({run.path / ENVIRONMENT: environment, run.path / CONFIG: _settings(experiment)})


def write_settings(run: RunDirectory, experiment: ExperimentConfig) -> None:
    """Replaces the run's settings."""
    run.write({run.path / CONFIG: _settings(experiment)})


def _settings(experiment: ExperimentConfig) -> bytes:
    """An experiment as the run keeps it."""
    values = experiment.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def save_task(run: RunDirectory, lesson: Lesson) -> None:
    """Writes the files of a learned task and commits them. The task then counts as learned."""
    task, folder = lesson.task, lesson.context.folder
    lesson.method.save(lesson.context)
    write_json(folder / COST, lesson.cost())
    write_jsonl(folder / TRAINING, lesson.log)
    write_jsonl(folder / TEST, (example.as_row() for example in task.test))
    write_json(folder / TASK, task_record(task, lesson.backbone).model_dump())
    run.commit_folder(folder, UNFINISHED, lesson.method.traits.latest_only)


def task_record(task: Task, backbone: Backbone) -> TaskRecord:
    """What a run keeps of a learned task beside its test examples."""
    return TaskRecord(
        name=task.name,
        metric=task.metric,
        extract=task.extract,
        training=dict(task.training),
        max_new_tokens=task.max_new_tokens,
        chat_template=template_of(backbone) if backbone.is_templated(task.train[0]) else None,
        examples=Counts(train=len(task.train), dev=len(task.dev), test=len(task.test)),
        fingerprints=Fingerprints(**task.fingerprints()),
    )


def is_learned_last(run: RunDirectory, task: Task, backbone: Backbone) -> bool:
    """Whether the newest task is this one: the same examples, scoring and fixed settings."""
    folders = run.learned()
    if not folders:
        return False
    stored, given = results.task_record(run, folders[-1]), task_record(task, backbone)
    fixed = {"training": fixed_training(given.training)}
    return given.model_copy(update=fixed) == stored.model_copy(
        update={"training": fixed_training(stored.training)}
    )


def fixed_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """A task's own training settings, but for those that may change while it is learned."""
    return {name: value for name, value in training.items() if name not in FREE}


def stored_task(run: RunDirectory, folder: Path) -> Task:
    """Reads a learned task, without its training examples."""
    description = results.task_record(run, folder)
    path = folder / TEST
    test = [parse_row(row, str(path)) for row in read_jsonl(path)]
    return Task(
        description.name,
        (),
        (),
        test,
        description.metric,
        description.extract,
        max_new_tokens=description.max_new_tokens,
    )
