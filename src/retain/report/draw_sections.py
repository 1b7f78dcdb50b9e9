"""What a run's method shows, drawn as terminal tables, one PNG, or the parts of a page.

The sections are those of `Method.diagnostics`; nothing here knows a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, missing_method
from retain.experiment.validation import check
from retain.methods import find
from retain.report.layout import TASKS_PER_TABLE, cuts, new_table
from retain.report.maps import MapsPanel
from retain.report.plots import Drawing, new_panel, panels_png
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import CONFIG
from retain.runs.sections import Grid, HeatMap, MarkedMaps, Section


def read_sections(run: RunDirectory, task: str | None = None) -> list[Section]:
    """Reads what a run's method shows of it, without loading its model; empty if it shows nothing.

    For a method that is not installed here, it is one sentence on what to install or name.

    Args:
        run: an opened run.
        task: the one to show in detail, for methods that do so.

    Raises:
        RetainError: when there is no such task, the method shows no task in detail, or a file is
            damaged.
    """
    name = results.settings(run).method.name
    method = find(name)
    if method is None:
        path = run.path / CONFIG
        experiment = check(ExperimentConfig, results.experiment_values(run), str(path))
        missing = f"What the method itself shows is left out. {missing_method(experiment, path)}."
        return [Section("Method", sentences=[missing])]
    sections = method.diagnostics(run, task)
    if task is not None and sections and task not in [section.task for section in sections]:
        raise RetainError(f"inspect: method '{name}' shows no task in detail; leave --task out")
    return sections


def require_sections(run: RunDirectory, task: str | None = None) -> list[Section]:
    """As `read_sections`, where there has to be something to show.

    Raises:
        RetainError: when there is nothing, and as `read_sections`.
    """
    sections = read_sections(run, task)
    if not sections:
        if not results.rows(run):
            raise RetainError(f"{run.path}: nothing to inspect yet; let it finish a task")
        name = results.settings(run).method.name
        raise RetainError(
            f"{run.path}: method '{name}' has nothing to inspect; retain report shows its scores, "
            "losses and costs"
        )
    return sections


def section_tables(section: Section, most: int = TASKS_PER_TABLE) -> list[Table]:
    """The tables of a section, with at most `most` tasks side by side; the last has the caption."""
    tables = [table for grid in section.grids for table in grid_tables(grid, most)]
    if tables and section.caption:
        tables[-1].caption, tables[-1].caption_justify = section.caption, "left"
    return tables


def grid_tables(grid: Grid, most: int = TASKS_PER_TABLE) -> list[Table]:
    """A grid as one or several tables of at most `most` tasks."""
    per_task = grid.per_task
    if per_task is None:
        return [_table(grid, range(len(grid.columns)), range(len(grid.columns)))]
    tables = []
    for part in cuts(len(per_task), most):
        tasks = per_task[part.start : part.stop]
        stop = len(grid.columns) if tasks.stop == per_task.stop else tasks.stop
        tables.append(_table(grid, [*range(per_task.start), *range(tasks.start, stop)], tasks))
    return tables


def _table(grid: Grid, columns: Sequence[int], tasks: range) -> Table:
    """The columns of a grid, and of its rows those with a cell for one of the tasks."""
    table = new_table(grid.title, [grid.columns[i] for i in columns])
    table.min_width = len(grid.title)  # keeps the title on one line
    table.columns[0].no_wrap = grid.per_task is not None
    for number, (label, cells) in enumerate(grid.rows):
        if grid.has_total and number == len(grid.rows) - 1:
            table.add_section()
        if any(i < len(cells) for i in tasks):
            table.add_row(Text(label), *(cells[i] if i < len(cells) else "" for i in columns))
    return table


def drawings(sections: Sequence[Section]) -> Iterator[Drawing]:
    """The pictures of sections, ready to be drawn."""
    for section in sections:
        for picture in section.pictures:
            yield _drawing(picture)


def _drawing(picture: HeatMap | MarkedMaps) -> Drawing:
    if isinstance(picture, MarkedMaps):
        return MapsPanel(picture)
    return new_panel(picture.values, picture.rows, picture.columns, picture.title, 1.0)


def write_png(sections: Sequence[Section], path: Path) -> None:
    """Writes the pictures of sections side by side as one PNG.

    Characters that matplotlib's DejaVu Sans lacks (such as Chinese) appear as boxes, with a
    UserWarning from matplotlib.

    Raises:
        RetainError: when there are none.
    """
    pictures = list(drawings(sections))
    if not pictures:
        raise RetainError("inspect: this run's method has no picture; leave --picture out")
    panels_png(pictures, path)
