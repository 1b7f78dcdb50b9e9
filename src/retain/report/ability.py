"""What `retain eval --general` shows: the plain backbone and the run, metric by metric."""

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
        task: its name, or its group's.
        metric: its name, with the harness' filter of answers where there is one.
        backbone: the plain backbone's, in the metric's own unit.
        run: that of the run's model.
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
    """A row a metric: the plain backbone's, the run's, the change with its standard error."""
    table = new_table("General ability", ["backbone", "run", "change", "±"])
    for own in scores:
        better = {True: " ↑", False: " ↓", None: ""}[own.higher_is_better]
        error = "–" if own.error is None else f"{own.error:.3f}"
        values = f"{own.backbone:.3f}", f"{own.run:.3f}", f"{own.run - own.backbone:+.3f}"
        table.add_row(Text(f"{own.task} {own.metric}{better}"), *values, error)
    return table
