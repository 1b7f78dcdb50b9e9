"""A run directory → what a report shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retain import results
from retain.report.changes import read_changes
from retain.report.heads import HEADS, read_heads
from retain.report.losses import read_losses
from retain.report.pseudo import read_samples
from retain.report.routing import read_routing
from retain.report.summary import RunSummary


def summarise(folder: Path) -> RunSummary:
    """Reads one run's scores, routing and settings, without loading its model."""
    run = results.open_run(folder)
    settings = results.settings(run)
    run.check("scores.json")
    scores = results.scores(run)
    rows = results.rows(run)
    last = rows[-1]["routing"] if rows else []
    pooled = len(last) > 1 and all(row is not None and len(row) == len(last) for row in last)
    chose_heads = any(name.endswith(f"/{HEADS}") for name in run.files)
    return RunSummary(
        label=folder.resolve().name,
        method=settings["method"]["name"],
        backbone=Path(settings["backbone"]["name"]).name,
        tasks=scores["tasks"],
        matrix=scores["matrix"],
        metrics=scores["metrics"],
        settings=dict(flat({k: v for k, v in settings.items() if k != "tasks"})),
        routing=read_routing(folder) if pooled else None,
        heads=read_heads(folder) if chose_heads else None,
        samples=read_samples(run),
        losses=read_losses(run),
        changes=read_changes(run),
        costs=results.costs(run),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `a.b` and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
