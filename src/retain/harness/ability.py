"""General ability, by lm-evaluation-harness: tasks outside the stream, before it and now."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lm_eval
import transformers
from lm_eval.tasks import TaskManager

from retain.backbone import Backbone, load_backbone
from retain.errors import RetainError, first_line
from retain.harness.model import Route, RoutedLM
from retain.learner import Learner
from retain.report.ability import General
from retain.system.progress import Progress


def general_ability(
    folder: Path,
    names: Sequence[str],
    limit: int | None,
    progress: Progress,
    trust_remote_code: bool = False,
) -> list[General]:
    """Asks tasks of the harness of a run's plain backbone, and of its model.

    Args:
        folder: the run directory.
        names: of tasks, groups or tags of the harness, or YAML files of tasks of its kind.
        limit: takes the first so many examples of each task.
        progress: is told what happens.
        trust_remote_code: as in `Learner.load`.

    Raises:
        RetainError: when the run cannot answer, needs the task's name, or a task cannot be read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it speaks of settings of its own command
    manager = _manager(names)
    learner = Learner.load(folder, progress, trust_remote_code=trust_remote_code)
    learner.refuse_unready()
    if learner.method.traits.needs_task_id:
        raise RetainError(
            f"{folder}: its method needs the task's name at inference, and none of its tasks is "
            "one of these; take a method that routes by itself"
        )
    tasks = _loaded(manager, names)
    experiment = learner.experiment
    options = experiment.evaluation.batch_size, progress

    def asked(backbone: Backbone, route: Route, label: str) -> Any:
        transformers.set_seed(experiment.seed)
        model = RoutedLM(backbone, route, *options, label)
        return lm_eval.evaluate(model, tasks, limit=limit, bootstrap_iters=0)

    now = asked(learner.backbone, learner.method.route, "general ability of the run")
    del learner  # before the backbone is there once more
    plain = load_backbone(experiment.backbone, experiment.prompt)
    before = asked(plain, lambda batch: None, "general ability of the backbone")
    return list(_compared(before, now))


def _manager(names: Sequence[str]) -> TaskManager:
    """The harness' index of tasks; RetainError for a name that is not in it."""
    if not names:
        raise RetainError(
            "--general: no task; name one of lm-evaluation-harness, such as hellaswag"
        )
    files = [name for name in names if Path(name).is_file()]
    manager = TaskManager(include_defaults=len(files) < len(names))  # thousands of files
    for name in names:
        if name not in files and name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks) or ["hellaswag"]
            raise RetainError(
                f"--general {name}: no such task; take a file, or a name that lm-eval knows, such "
                f"as {', '.join(near)}"
            )
    return manager


def _loaded(manager: TaskManager, names: Sequence[str]) -> Any:
    """Tasks with their data; RetainError when a file or the data cannot be read."""
    try:
        tasks = manager.load(list(names))
    except Exception as error:  # of every kind: the file, its code, the hub, the network
        raise RetainError(
            f"--general {','.join(names)}: cannot be read ({first_line(error)}); correct it, "
            "or see that its data can be reached"
        ) from None
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(0)
    return tasks


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[General]:
    for task, values in before["results"].items():
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            change = now["results"][task][key] - value
            rows = [each["samples"].get(task, ()) for each in (before, now)]
            error = _error(rows[0], rows[1], key, change)
            better = before["higher_is_better"].get(task, {}).get(metric)
            name = metric if kept == "none" else f"{metric} ({kept})"
            yield General(task, name, value, value + change, error, better)


def _error(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], key: str, change: float
) -> float | None:
    """Of the mean of the examples' differences, if that is what the metric's change is."""
    metric, _, kept = key.partition(",")
    first, last = (
        {
            row["doc_id"]: float(row[metric])
            for row in rows
            if row["filter"] == kept and isinstance(row.get(metric), int | float)
        }
        for rows in (before, now)
    )
    differences = [last[number] - value for number, value in first.items() if number in last]
    if len(differences) < 2 or not math.isclose(fmean(differences), change, abs_tol=1e-9):
        return None
    return stdev(differences) / math.sqrt(len(differences))
