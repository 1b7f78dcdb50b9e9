"""A run directory → what a report shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retain import results
from retain.report.summary import RunSummary


def summarise(folder: Path) -> RunSummary:
    """Reads one run's scores, routing and settings, without loading its model."""
    run = results.open_run(folder)
    settings = results.settings(run)
    run.check("scores.json")
    scores = results.scores(run)
    rows = results.rows(run)
    routing = rows[-1]["routing"] if rows else []
    pooled = len(routing) > 1 and all(
        row is not None and len(row) == len(routing) for row in routing
    )
    return RunSummary(
        label=folder.resolve().name,
        method=settings["method"]["name"],
        backbone=Path(settings["backbone"]["name"]).name,
        tasks=scores["tasks"],
        matrix=scores["matrix"],
        metrics=scores["metrics"],
        routing=routing if pooled else None,
        settings=dict(flat({k: v for k, v in settings.items() if k != "tasks"})),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `a.b` and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
