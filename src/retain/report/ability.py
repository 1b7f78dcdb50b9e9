"""The table of `retain eval --general`: the plain backbone and the run, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from retain.report.layout import new_table


@dataclass(frozen=True)
class General:
    """One metric of a task of the harness.

    Attributes:
        task: name of the task, or of its group.
        metric: its name, with the harness' filter of answers where there is one.
        backbone: the plain backbone's score, in the metric's own unit.
        run: the score of the run's model.
        error: standard error of the difference, from the examples one by one; None where the metric
            is no mean over them.
        higher_is_better: None where the task does not say.
    """

    task: str
    metric: str
    backbone: float
    run: float
    error: float | None
    higher_is_better: bool | None


def general_table(scores: Sequence[General]) -> Table:
    """Table with a row per metric: backbone, run, the change and its standard error."""
    table = new_table("General ability", ["backbone", "run", "change", "±"])
    for one in scores:
        better = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
        error = "–" if one.error is None else f"{one.error:.3f}"
        values = f"{one.backbone:.3f}", f"{one.run:.3f}", f"{one.run - one.backbone:+.3f}"
        table.add_row(Text(f"{one.task} {one.metric}{better}"), *values, error)
    return table
