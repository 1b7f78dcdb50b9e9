"""Tables of a sweep: for the terminal (rich), as Markdown, and as CSV."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from retain.report.layout import new_table
from retain.report.summary import NO_AVERAGE, not_as_published, samples_note
from retain.sweep.result import Sweep, SweepRun
from retain.system.printing import csv_text, escaped

SCORES = {
    "average_performance": "AP",
    "forgetting": "F.Ra",
    "forward_transfer": "FWT",
    "backward_transfer": "BWT",
}
OTHER_SCORES = {"rouge_l": "AP, ROUGE-L", "own_block": "own block"}
COSTS = {
    "parameters": "trainable",
    "megabytes_per_task": "MB per task",
    "megabytes": "MB kept",
    "minutes": "minutes",
}
COLUMNS = {**SCORES, **OTHER_SCORES, **COSTS}
"""Fields of `Measures`, and their headings."""


class Line(NamedTuple):
    """A line of a table: a run, or the mean over the finished runs of a variant."""

    variant: str
    seed: str
    cells: list[str]


def lines(sweep: Sweep) -> list[Line]:
    """A line per run, and after the runs of a variant their means.

    A run that is not finished has "–" in all cells. The means stand where two or more runs are
    finished, and in a cell where all of them have a value; those of scores with the standard
    deviation of a sample.
    """
    table = []
    for variant in sweep.variants:
        runs = [run for run in sweep.runs if run.variant == variant]
        done = [run for run in runs if run.measures is not None]
        table += [Line(variant, str(run.seed), _cells([run])) for run in runs]
        if len(done) > 1:
            table.append(Line(variant, "mean", _cells(done)))
    return table


def footnotes(sweep: Sweep) -> list[str]:
    """What scores with "±" are of, which methods are not as published, and where AP is "–"."""
    shared = sweep.settings.get("method", {})
    methods = {v: {**shared, **own.get("method", {})} for v, own in sweep.variants.items()}
    notes = [
        not_as_published(variant, str(method.get("name")), method)
        for variant, method in methods.items()
    ]
    samples = [sample for run in sweep.runs for row in run.samples for sample in row]
    if samples:
        notes.insert(0, f"In the line of a seed, {samples_note(samples)}")
    measured = [run.measures for run in sweep.runs if run.measures is not None]
    if any(measures.average_performance is None for measures in measured):
        notes.append(NO_AVERAGE)
    return [note for note in notes if note]


def terminal_tables(sweep: Sweep) -> Group:
    """Tables that fit on 80 columns, without the columns that no run has."""
    body = lines(sweep)
    tables = []
    for part in (SCORES, OTHER_SCORES, COSTS):
        places = [i for i, field in enumerate(COLUMNS) if field in part]
        used = [i for i in places if any(line.cells[i] != "–" for line in body)]
        if not used and part is not SCORES:
            continue
        table = new_table("", ["seed", *(list(COLUMNS.values())[i] for i in used)])
        for line in body:
            table.add_row(Text(line.variant), line.seed, *(line.cells[i] for i in used))
        tables.append(table)
    return Group(*tables, *map(Text, footnotes(sweep)))


def as_markdown(sweep: Sweep) -> str:
    """The lines of a sweep as a GitHub Markdown table, and its footnotes as a list."""
    head = ["variant", "seed", *COLUMNS.values()]
    rows = [[f"`{line.variant}`", line.seed, *line.cells] for line in lines(sweep)]
    texts = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [head, *rows]]
    texts.insert(1, "| --- |" + " ---: |" * (len(head) - 1))
    if notes := footnotes(sweep):
        texts += ["", *(f"- {note}" for note in notes)]
    return escaped("\n".join(texts) + "\n")


def as_csv(sweep: Sweep) -> str:
    """A row per run: where it is, its status, its measures, and the errors of those of samples."""
    errors = [f"{field}_standard_error" for field in SCORES]
    rows: list[list[Any]] = [["run", "variant", "seed", "status", *COLUMNS, *errors]]
    for run in sweep.runs:
        values = (value for (value,) in _values([run]).values())
        of_samples = (run.standard_errors.get(field) for field in SCORES)
        rows.append([run.path, run.variant, run.seed, run.status, *values, *of_samples])
    return csv_text(rows)


def _values(runs: Sequence[SweepRun]) -> dict[str, list[float | None]]:
    """By column the value of each run."""
    return {field: [getattr(run.measures, field, None) for run in runs] for field in COLUMNS}


def _cells(runs: Sequence[SweepRun]) -> list[str]:
    errors = runs[0].standard_errors if len(runs) == 1 else {}
    return [_cell(field, values, errors.get(field)) for field, values in _values(runs).items()]


def _cell(field: str, values: Sequence[float | None], error: float | None) -> str:
    """The value of one run, with its error if it is of samples, or the mean of several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    if field == "parameters":
        return f"{statistics.fmean(known):,.0f}"
    mean = f"{statistics.fmean(known):.2f}"
    if len(known) == 1 or field in COSTS:
        return mean if error is None else f"{mean} ± {error:.2f}"
    return f"{mean} ± {statistics.stdev(known):.2f}"
