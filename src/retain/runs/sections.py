"""What a method shows of a run: sections of tables and pictures, as plain values.

A method's `diagnostics` builds them; `retain inspect` and the report page draw them without knowing
the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table of texts with a label before each row.

    Attributes:
        title: above it.
        columns: headings of the cells.
        rows: each row's label and its cells; cells that are missing at the end stay empty.
        per_task: which columns stand for tasks or blocks. A terminal shows a few of them in one
            table; columns before them are repeated in each, columns after them stand in the last.
            None for a table that is never cut.
        has_total: whether the last row sums up the others.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    per_task: range | None = None
    has_total: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A picture of values from 0 to 1, each written in its cell.

    `values` has a list per row label, at most as long as there are column labels.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class MarkedMap:
    """One of several maps: values (rows × columns), and the cells that are outlined."""

    title: str
    values: Sequence[Sequence[float]]
    marked: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class MarkedMaps:
    """A picture of large maps side by side, with the same row labels and numbered columns.

    Attributes:
        title: above them.
        rows: labels.
        maps: at least one; each has its own scale from 0 to its highest value.
        scale: words beside the scale of colours.
        mark: words beside an outlined cell.
        axes: words on what rows and columns are.
    """

    title: str
    rows: Sequence[str]
    maps: Sequence[MarkedMap]
    scale: str
    mark: str
    axes: str


@dataclass(frozen=True)
class Section:
    """Tables and pictures with a heading.

    Attributes:
        title: the heading.
        grids: the tables.
        pictures: heat maps of the same numbers.
        sentences: what this run shows, in words.
        caption: what the numbers mean.
        task: the one that is shown in detail, where a section does that.
    """

    title: str
    grids: Sequence[Grid] = ()
    pictures: Sequence[HeatMap | MarkedMaps] = ()
    sentences: Sequence[str] = ()
    caption: str = ""
    task: str | None = None
