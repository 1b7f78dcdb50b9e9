"""What tables share: how many tasks stand in one, and how an empty one looks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retain.system.printing import escaped

TASKS_PER_TABLE = 6
"""Most tasks side by side in one terminal table, so that numbers fit in 80 columns."""


def cuts(count: int, most: int = TASKS_PER_TABLE) -> list[range]:
    """Returns the indices of `count` tasks in parts of at most `most`, one part per table."""
    return [range(count)[start : start + most] for start in range(0, count, most)]


def new_table(title: str, columns: Sequence[str]) -> Table:
    """Returns an empty table with a column of row labels before the others."""
    # Text, not str: rich would read "[...]" in a name as markup.
    table = Table(title=Text(escaped(title), style="bold"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(Text(escaped(name)), justify="right", overflow="fold", min_width=5)
    return table
