"""What `retain eval --general` shows: the plain backbone and the run, metric by metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from retain.report.tables import new_table

if TYPE_CHECKING:  # which imports the harness, an extra
    from retain.general import General


def general_table(scores: Sequence[General]) -> Table:
    """A row a metric: the plain backbone's, the run's, the change with its standard error."""
    table = new_table("General ability", ["backbone", "run", "change", "±"])
    for own in scores:
        better = {True: " ↑", False: " ↓", None: ""}[own.higher_is_better]
        error = "–" if own.error is None else f"{own.error:.3f}"
        values = f"{own.backbone:.3f}", f"{own.run:.3f}", f"{own.run - own.backbone:+.3f}"
        table.add_row(Text(f"{own.task} {own.metric}{better}"), *values, error)
    return table
