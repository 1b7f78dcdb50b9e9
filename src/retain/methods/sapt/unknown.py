"""How many of each task's test prompts were taken for prompts of no learned task."""

from __future__ import annotations

from pathlib import Path

from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Prediction, predictions_file, read_records
from retain.runs.sections import Grid, Section

TITLE = "Test prompts of no learned task"


def unknown_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the section that counts them, from the stored routing; none without scores."""
    count = len(results.rows(run))
    folders = run.learned()[:count]
    rows = [
        (
            short(results.task_record(run, folder).name),
            [_counted(run, folder, j), _counted(run, folders[-1], j)],
        )
        for j, folder in enumerate(folders)
    ]
    if not rows:
        return []
    return [
        Section(
            TITLE,
            [Grid(TITLE, ["right after learning", "now"], rows)],
            caption=(
                "Prompts whose likeness to every task is below method.router.threshold: no block "
                "has a weight, and the backbone alone has answered."
            ),
        )
    ]


def _counted(run: RunDirectory, folder: Path, task: int) -> str:
    """Returns how many of a task's prompts had no weight, of how many; – where none is stored."""
    path = predictions_file(folder, task)
    if not results.holds(run, path):
        return "–"
    rows = read_records(Prediction, path)
    alone = sum(row.routing is not None and not any(row.routing) for row in rows)
    return f"{alone} of {len(rows)}"
