"""A run directory → what a report shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from retain.report.changes import read_changes
from retain.report.heads import read_heads
from retain.report.losses import read_losses
from retain.report.pseudo_samples import read_samples
from retain.report.routing import read_routing, routes
from retain.report.summary import Examined, RunSummary
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import HEADS, SCORES, TASK, TaskRecord


class Counts(BaseModel):
    """How many examples a task had of each split."""

    train: int
    test: int


class CountedTask(TaskRecord):
    """`task.json`, with what only a report reads of it."""

    examples: Counts


def summarise(folder: Path) -> RunSummary:
    """Reads one run's scores, routing and settings, without loading its model."""
    run = results.open_run(folder)
    settings = results.settings(run)
    run.check(SCORES)
    scores = results.scores(run)
    learned = run.learned()
    return RunSummary(
        label=folder.resolve().name,
        method=settings["method"]["name"],
        backbone=Path(settings["backbone"]["name"]).name,
        folder=folder.resolve(),
        examined=[_examined(run, folder, settings["evaluation"]["limit"]) for folder in learned],
        tasks=[results.task_record(run, folder)["name"] for folder in learned],
        matrix=scores["matrix"],
        metrics=scores["metrics"],
        settings=dict(flat({k: v for k, v in settings.items() if k != "tasks"})),
        routing=read_routing(run) if routes(run) else None,
        heads=read_heads(run) if any(run.commits(own / HEADS) for own in learned) else None,
        samples=read_samples(run),
        losses=read_losses(run),
        changes=read_changes(run),
        costs=results.costs(run),
    )


def _examined(run: RunDirectory, folder: Path, limit: int | None) -> Examined:
    task = results.read(run, folder / TASK, CountedTask)
    counts = task["examples"]
    tested = counts["test"] if limit is None else min(limit, counts["test"])
    fingerprint = task["fingerprints"]["test"]
    return Examined(task["name"], task["metric"], tested, counts["train"], fingerprint)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `a.b` and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
