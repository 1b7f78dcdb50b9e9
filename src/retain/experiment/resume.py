"""Whether a run may go on under an experiment file: the file has to mean the same experiment."""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import FREE, ExperimentConfig, TaskConfig, resolved
from retain.experiment.read_tasks import with_defaults
from retain.runs.backbone_path import found_from, is_same


def refuse_changes(
    stored: ExperimentConfig, given: ExperimentConfig, folder: Path, learned: int
) -> None:
    """Raises RetainError when a run is to be continued under another experiment.

    The tasks after the first `learned` may be others; so may what is `FREE`.
    """
    before, now = _settings(stored), _settings(settled(given, stored))
    if is_same(found_from(folder, stored.backbone.name), given.backbone.name):
        now["backbone"]["name"] = before["backbone"]["name"]
    differences = _differences(before, now)
    tasks = zip_longest(stored.tasks[:learned], given.tasks[:learned])
    for number, (old, new) in enumerate(tasks, start=1):
        if old is None:
            differences.append(f"task {number} ({with_defaults(new).name}) is not in the run")
        elif new is None:
            differences.append(f"task {number} ({with_defaults(old).name}) is now missing")
        else:
            differences += [
                f"task {number} ({with_defaults(old).name}): {difference}"
                for difference in _differences(_meaning(old), _meaning(new))
            ]
    if differences:
        raise RetainError(
            f"{folder}: was started with other settings ({'; '.join(differences)}); "
            "use the same ones, or another --output"
        )


def settled(given: ExperimentConfig, stored: ExperimentConfig) -> ExperimentConfig:
    """Returns an experiment in which `auto` is what it was when the run began, on any machine."""
    backbone, training = given.backbone, given.training
    if backbone.dtype == "auto":
        backbone = backbone.model_copy(update={"dtype": stored.backbone.dtype})
    if training.bf16 == "auto":
        training = training.model_copy(update={"bf16": stored.training.bf16})
    return given.model_copy(update={"backbone": backbone, "training": training})


def _settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """All but the tasks and what may change."""
    values = resolved(experiment).model_dump(mode="json", exclude={"tasks", "output", "plugins"})
    for part, field in FREE:
        del values[part][field]
    return values


def _meaning(task: TaskConfig) -> dict[str, Any]:
    """A task's fields, alike for two ways to write the same."""
    values = with_defaults(task).model_dump(mode="json")
    values["training"] = values["training"] or {}
    if task.reader != "hub":
        for field in ("path", "test"):
            values[field] = values[field] and os.path.normpath(values[field])
    return values


def _differences(old: Any, new: Any, field: str = "") -> list[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{field}: {old} is now {new}"]
    prefix = f"{field}." if field else ""
    return [
        difference
        for key in dict.fromkeys((*old, *new))
        for difference in _differences(old.get(key), new.get(key), f"{prefix}{key}")
    ]
