"""The tasks of an experiment, read from files, benchmark folders and the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.experiment.config import TaskConfig, task_name
from retain.experiment.validation import check
from retain.metrics import trace
from retain.metrics.extract import WHOLE
from retain.tasks import Example, Task
from retain.tasks.readers import (
    read_hub,
    read_long_sequence,
    read_rows,
    read_superni,
    read_trace,
)
from retain.tasks.rows import COLUMNS

FOLDER_READERS: dict[str, tuple[Callable[..., list[Example]], str, Mapping[str, str]]] = {
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
    for number, config in enumerate(configs, start=1):
        task = read_task(check(TaskConfig, config, f"load_stream, task {number}"))
        if any(task.name == known.name for known in tasks):
            raise RetainError(f"tasks: two are named '{task.name}'; give one another 'name'")
        tasks.append(task)
    return tasks


def with_defaults(config: TaskConfig) -> TaskConfig:
    """The same with the defaults of its reader spelled out: name, scoring, columns, hub split."""
    metric, test = "exact_match", config.test
    columns: dict[str, str] = {str(column): name for column, name in config.columns.items()}
    if config.reader in FOLDER_READERS:
        _, metric, by_name = FOLDER_READERS[config.reader]
        metric = by_name.get(Path(config.path).name, metric)
    else:
        columns = COLUMNS | columns
    if config.reader == "hub":
        test = config.test or "test"
    defaults = {
        "name": config.name or task_name(config.path, config.reader),
        "metric": config.metric or metric,
        "extract": config.extract or WHOLE,
        "columns": columns,
        "test": test,
    }
    return config.model_copy(update=defaults)


def read_task(config: TaskConfig) -> Task:
    """Reads one configured task; what its splits lack is carved off train."""
    test: list[Example] | None
    config = with_defaults(config)
    columns: dict[str, str] = {str(k): v for k, v in config.columns.items()}
    if config.reader in FOLDER_READERS:
        read, _, _ = FOLDER_READERS[config.reader]
        folder = Path(config.path)
        if not folder.is_dir():
            raise RetainError(f"{folder}: no such folder; check the path")
        written = {"style": config.prompt_style, "references": config.references}
        options = {key: value for key, value in written.items() if value is not None}
        train, test = read(folder, "train", **options), read(folder, "test", **options)
    elif config.reader == "hub":
        train = read_hub(config.path, "train", config.subset, columns)
        test = read_hub(config.path, str(config.test), config.subset, columns, kept_back=True)
    else:
        train = read_rows(Path(config.path), columns)
        test = None if config.test is None else read_rows(Path(config.test), columns, True)
    return Task.split(
        str(config.name),
        train,
        test,
        str(config.metric),
        str(config.extract),
        config.train_limit,
        config.model_dump()["training"],
        config.max_new_tokens,
    )
