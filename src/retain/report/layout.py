"""What tables and pictures share: labels cut to their room, numbers as text, empty tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

TASKS_PER_TABLE = 6
"""Most tasks side by side in one terminal table, so that numbers fit in 80 columns."""
LABEL_CELLS = 24
"""The longest label, in terminal cells (a CJK character takes two)."""


def short(label: str) -> str:
    """A label cut to the room that it has."""
    label = " ".join(label.split())
    if cell_len(label) <= LABEL_CELLS:
        return label
    return set_cell_size(label, LABEL_CELLS - 1).rstrip() + "…"


def score_text(value: float | None) -> str:
    """A score or metric with one decimal; "–" when it was not measured."""
    # Adding 0.0 turns the -0.0 that round() can leave into 0.0.
    return "–" if value is None else f"{round(value, 1) + 0.0:.1f}"


def change_text(change: float | None) -> str:
    """As `score_text`, with a sign before a gain too."""
    return ("+" if change is not None and round(change, 1) > 0 else "") + score_text(change)


def cuts(count: int, most: int = TASKS_PER_TABLE) -> list[range]:
    """The indices of tasks in parts, each to stand in one table."""
    return [range(count)[start : start + most] for start in range(0, count, most)]


def new_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table with a column of row labels before the others."""
    # Text, not str: rich would read "[...]" in a name as markup.
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(Text(name), justify="right", overflow="fold", min_width=5)
    return table
