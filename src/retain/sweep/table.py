"""Tables of a sweep: for the terminal (rich), as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from retain.report.layout import new_table
from retain.sweep.result import Sweep, SweepRun

COLUMNS = {
    "average_performance": "AP",
    "forgetting": "F.Ra",
    "forward_transfer": "FWT",
    "backward_transfer": "BWT",
    "rouge_l": "AP, ROUGE-L",
    "own_block": "own block",
    "parameters": "trainable",
    "megabytes_per_task": "MB per task",
    "megabytes": "MB kept",
    "minutes": "minutes",
}
"""Fields of `Measures`, and their headings."""


class Line(NamedTuple):
    """A line of a table: a run, or the mean over the finished runs of a variant."""

    variant: str
    seed: str
    cells: list[str]


def lines(sweep: Sweep) -> list[Line]:
    """A line per run, and after the runs of a variant their mean ± standard deviation.

    A run that is not finished has "–" in all cells. The mean stands where two or more runs are
    finished, and in a cell where all of them have a value; the deviation is that of a sample.
    """
    table = []
    for variant in sweep.variants:
        runs = [run for run in sweep.runs if run.variant == variant]
        for run in runs:
            table.append(Line(variant, str(run.seed), [_cell(v) for v in _columns([run])]))
        done = [run for run in runs if run.measures is not None]
        if len(done) > 1:
            means = [_cell(values) for values in _columns(done)]
            table.append(Line(variant, f"mean of {len(done)}", means))
    return table


def terminal_table(sweep: Sweep) -> Table:
    """The lines of a sweep, without the columns that no run has."""
    body = lines(sweep)
    used = [i for i in range(len(COLUMNS)) if any(line.cells[i] != "–" for line in body)]
    titles = list(COLUMNS.values())
    table = new_table("", ["seed", *(titles[i] for i in used)])
    for line in body:
        table.add_row(Text(line.variant), line.seed, *(line.cells[i] for i in used))
    return table


def as_markdown(sweep: Sweep) -> str:
    """The lines of a sweep as a GitHub Markdown table."""
    head = ["variant", "seed", *COLUMNS.values()]
    rows = [[f"`{line.variant}`", line.seed, *line.cells] for line in lines(sweep)]
    texts = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [head, *rows]]
    texts.insert(1, "| --- |" + " ---: |" * (len(head) - 1))
    return "\n".join(texts) + "\n"


def as_csv(sweep: Sweep) -> str:
    """A row per run: where it is, its status, and its measures in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "variant", "seed", "status", *COLUMNS])
    for run in sweep.runs:
        values = [column[0] for column in _columns([run])]
        writer.writerow([run.path, run.variant, run.seed, run.status, *values])
    return text.getvalue()


Values = Sequence[float | None]


def _columns(runs: Sequence[SweepRun]) -> list[Values]:
    """By column the value of each run."""
    return [[getattr(run.measures, field, None) for run in runs] for field in COLUMNS]


def _cell(values: Values) -> str:
    """The value of one run, or the mean ± standard deviation of several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    mean = _number(statistics.fmean(known))
    return mean if len(known) == 1 else f"{mean} ± {_number(statistics.stdev(known))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value > 1e4 else f"{value:.2f}"
