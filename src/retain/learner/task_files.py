"""The files that the learner writes for a run and for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from retain.experiment.config import ExperimentConfig
from retain.learner.lesson import Lesson
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.environment import versions
from retain.runs.records import CONFIG, COST, ENVIRONMENT, TASK, TEST, TRAINING, UNFINISHED
from retain.system.files import read_jsonl, write_json, write_jsonl, write_text
from retain.tasks import Task
from retain.tasks.readers import parse_row


def start_run(
    run: RunDirectory, experiment: ExperimentConfig, fingerprints: Mapping[str, str]
) -> None:
    """Writes the environment and settings of a new run; does nothing if the run exists."""
    if run.exists:
        return
    path = run.path / ENVIRONMENT
    write_json(path, {**versions(), **fingerprints})
    write_settings(run, experiment, path)


def write_settings(run: RunDirectory, experiment: ExperimentConfig, *others: Path) -> None:
    """Writes the run's settings, and commits them together with other written files."""
    path = run.path / CONFIG
    values = experiment.model_dump(mode="json")
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    run.commit([path, *others])


def save_task(run: RunDirectory, lesson: Lesson) -> None:
    """Writes the files of a learned task and commits them. The task then counts as learned."""
    task, folder = lesson.task, lesson.context.folder
    lesson.method.save(lesson.context)
    write_json(folder / COST, lesson.cost())
    write_jsonl(folder / TRAINING, lesson.log)
    write_jsonl(folder / TEST, (example.as_row() for example in task.test))
    description = {
        "name": task.name,
        "metric": task.metric,
        "training": dict(task.training),
        "max_new_tokens": task.max_new_tokens,
        "examples": {split: len(getattr(task, split)) for split in ("train", "dev", "test")},
        "fingerprints": task.fingerprints(),
    }
    write_json(folder / TASK, description)
    run.commit_folder(folder, UNFINISHED, lesson.method.traits.latest_only)


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
        max_new_tokens=description.max_new_tokens,
    )
