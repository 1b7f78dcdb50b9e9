"""What a new block began as: a fresh one, or a copy of the nearest learned task's block."""

from __future__ import annotations

from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Record
from retain.runs.sections import Grid, Section

START = "start.json"
"""File in a task's folder, under `start: nearest`."""


class Start(Record):
    """`start.json`: the learned task that is nearest to this one.

    Attributes:
        nearest: its name; None for the first task.
        cosine: the whitened cosine of the two tasks' means, from −1 to 1.
        copied: whether the new block began as a copy of that task's block.
    """

    nearest: str | None = None
    cosine: float | None = None
    copied: bool = False


def start_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the section on what each block began as; no section without `start: nearest`."""
    rows = []
    for folder in run.learned():
        start = results.read(run, folder / START, Start)
        if start is not None:
            cosine = "–" if start.cosine is None else f"{start.cosine:.2f}"
            cells = [short(start.nearest or "–"), cosine, "a copy" if start.copied else "fresh"]
            rows.append((short(results.task_record(run, folder).name), cells))
    if not rows:
        return []
    return [
        Section(
            "What each block began as",
            [Grid("What each block began as", ["nearest task", "cosine", "block"], rows)],
            caption=(
                "The nearest of the tasks learned before, by the whitened cosine of the mean "
                "prompts. Above method.start_above the block began as a copy of that task's block."
            ),
        )
    ]
