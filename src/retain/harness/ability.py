"""General ability: lm-evaluation-harness tasks, for the plain backbone and for the run's model."""

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
from retain.learner.learned_model import LearnedModel
from retain.report.ability import General
from retain.system.progress import Progress


def general_ability(
    folder: Path,
    names: Sequence[str],
    limit: int | None,
    progress: Progress,
    trust_remote_code: bool = False,
) -> list[General]:
    """Evaluates a run's plain backbone and its model on tasks of lm-evaluation-harness.

    Args:
        folder: the run directory.
        names: names of the harness's tasks, groups or tags, or paths of its YAML task files.
        limit: number of examples used from the start of each task; None for all.
        progress: receives the progress of both evaluations.
        trust_remote_code: as in `LearnedModel.load`.

    Returns:
        One result per task and metric.

    Raises:
        RetainError: if the run cannot answer, its method needs the task's name, or a task cannot be
            read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about its command's settings
    manager = _manager(names)
    learned = LearnedModel.load(folder, progress, trust_remote_code=trust_remote_code)
    learned.require_ready()
    if learned.method.traits.needs_task_id:
        raise RetainError(
            f"{folder}: its method needs the task's name at inference, and these tasks are not "
            "the run's; use a method that routes by the prompt"
        )
    tasks = _loaded(manager, names)
    experiment = learned.experiment
    options = experiment.evaluation.batch_size, progress

    def evaluated(backbone: Backbone, route: Route, label: str) -> Any:
        transformers.set_seed(experiment.seed)
        model = RoutedLM(backbone, route, *options, label)
        return lm_eval.evaluate(model, tasks, limit=limit, bootstrap_iters=0)

    now = evaluated(learned.backbone, learned.method.route, "general ability of the run")
    source = learned.backbone.source
    del learned  # frees its memory before the backbone is loaded again
    plain = load_backbone(source, experiment.prompt)
    before = evaluated(plain, lambda batch: None, "general ability of the backbone")
    return list(_compared(before, now))


def _manager(names: Sequence[str]) -> TaskManager:
    """Returns the harness's index of tasks; raises RetainError for a name that is not in it."""
    if not names:
        raise RetainError(
            "--general: no task; name one of lm-evaluation-harness, such as hellaswag"
        )
    files = [name for name in names if Path(name).is_file()]
    # Reading the harness's own tasks takes long: thousands of files.
    manager = TaskManager(include_defaults=len(files) < len(names))
    for name in names:
        if name not in files and name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks) or ["hellaswag"]
            raise RetainError(
                f"--general {name}: no such file or task; use a task file, or a name that lm-eval "
                f"knows, such as {', '.join(near)}"
            )
    return manager


def _loaded(manager: TaskManager, names: Sequence[str]) -> Any:
    """Loads tasks and their data; raises RetainError if a file or the data cannot be read."""
    try:
        tasks = manager.load(list(names))
    except Exception as error:  # any type: from the file, its code, the hub or the network
        raise RetainError(
            f"--general {','.join(names)}: cannot be read ({first_line(error)}); correct the "
            "file, or make sure that its data is reachable"
        ) from None
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(0)
    return tasks


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[General]:
    """Yields one result per task and metric from the harness's results of both models."""
    for task, values in before["results"].items():
        for key, value in values.items():
            metric, _, answer_filter = key.partition(",")
            if not answer_filter or metric.endswith("_stderr"):
                continue
            if not isinstance(value, int | float):
                continue
            change = now["results"][task][key] - value
            samples = [results["samples"].get(task, ()) for results in (before, now)]
            error = _standard_error(samples[0], samples[1], key, change)
            better = before["higher_is_better"].get(task, {}).get(metric)
            name = metric if answer_filter == "none" else f"{metric} ({answer_filter})"
            yield General(task, name, value, value + change, error, better)


def _standard_error(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], key: str, change: float
) -> float | None:
    """Returns the standard error of the mean difference between paired examples.

    It is None if the metric is not a mean over examples, so that `change` is not that difference.
    """
    metric, _, answer_filter = key.partition(",")
    values_before, values_now = (
        {
            sample["doc_id"]: float(sample[metric])
            for sample in samples
            if sample["filter"] == answer_filter and isinstance(sample.get(metric), int | float)
        }
        for samples in (before, now)
    )
    shared = [doc_id for doc_id in values_before if doc_id in values_now]
    differences = [values_now[doc_id] - values_before[doc_id] for doc_id in shared]
    if len(differences) < 2 or not math.isclose(fmean(differences), change, abs_tol=1e-9):
        return None
    return stdev(differences) / math.sqrt(len(differences))
