"""One self-contained HTML page about one or several runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import sqrt

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from retain.report import losses
from retain.report.changes import Changes, changes_table
from retain.report.draw_sections import drawings, section_tables
from retain.report.plots import Curve, curves, drawing_svg, heat_map
from retain.report.summary import (
    RunSummary,
    not_as_published,
    samples_note,
    sentence,
    with_distinct_labels,
)
from retain.report.tables import (
    cost_table,
    examined_table,
    metrics_notes,
    metrics_table,
    score_table,
    standings_table,
)
from retain.runs.sections import Section
from retain.system.printing import escaped


@dataclass(frozen=True)
class Part:
    """Part of the page: a heading, a sentence, pictures (SVG), and tables.

    A table with a caption is folded and opens by a click; one without is always shown.
    """

    title: str
    words: str
    pictures: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()


def render(summaries: Sequence[RunSummary]) -> str:
    """Returns the page as HTML: no scripts, no external resources, equal for equal input."""
    summaries = with_distinct_labels(summaries)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cells"] = _cells
    environment.filters["picture"] = Markup
    template = files("retain.report").joinpath("template.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        metrics=metrics_table(summaries),
        notes=metrics_notes(summaries),
        runs=[
            {"summary": run, "sentence": sentence(run), "parts": list(_parts(run))}
            for run in summaries
        ],
    )
    return escaped(page)


def _cells(table: Table) -> tuple[list[str], list[list[str]], bool]:
    """Headings and rows of a terminal table, and whether its cells are words."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return heads, rows, table.columns[-1].justify == "left"


def _parts(run: RunSummary) -> Iterator[Part]:
    if run.examined:
        yield _tasks(run)
    if run.matrix:
        yield _scores(run)
        yield _over_time(run)
    if run.changes is not None and run.changes.counts:
        yield _lost_answers(run.changes)
    yield from map(_shown, run.sections)
    if run.losses:
        yield Part(
            "Training",
            "What each part of the method added to the loss, as weighted there, over the steps of "
            "all tasks; cross-entropy and KL are in nats a token. The scale is logarithmic: a part "
            "is not drawn where it was 0.",
            [losses.losses_svg(run.losses)],
            [("Losses as a table", losses.losses_table(run.losses))],
        )
    if run.costs:
        yield Part(
            "Cost",
            "What each task took: how long it was learned, how many parameters learned it, and "
            "what the run keeps of it.",
            tables=[("", cost_table(run))],
        )
    if run.settings:
        settings = Table("setting", "value")
        for name, value in run.settings.items():
            settings.add_row(name, str(value))
        options = {n.removeprefix("method."): v for n, v in run.settings.items()}
        note = not_as_published(run.method, run.method, options)
        yield Part("Settings", f"{note}." if note else "", tables=[("All settings", settings)])


def _tasks(run: RunSummary) -> Part:
    words = "What was learned, in this order, and how it is scored (0 to 100)."
    exact = [task.tested for task in run.examined if task.metric == "exact_match" and task.tested]
    if exact:
        words += (
            " The standard error of an exact-match score p over n examples is 100·√(p(1−p)/n) "
            f"points: {50 / sqrt(min(exact)):.1f} at a score of 50 with {min(exact):,} examples."
        )
    return Part("Tasks", words, tables=[("", examined_table(run))])


def _scores(run: RunSummary) -> Part:
    return Part(
        "Scores",
        "The score in row “after A”, column B was measured on task B after task A was learned."
        + (f" {samples_note(run.samples.values())}" if run.samples else ""),
        [
            heat_map(
                run.matrix, run.row_labels, run.tasks, f"Scores of {run.label}", 100.0, run.samples
            )
        ],
        [("Scores as a table", score_table(run))],
    )


def _over_time(run: RunSummary) -> Part:
    learned = len(run.matrix)
    lines = []
    for j, task in enumerate(run.tasks[:learned]):
        column = [(i + 1, run.matrix[i][j]) for i in range(j, learned)]
        points = [(float(x), float("nan") if y is None else y) for x, y in column]
        lines.append(Curve(task, points))
    picture = curves(lines, "Score of each task over time", "tasks learned")
    return Part(
        "What was kept, lost and gained",
        "Each task's score right after learning it (then), its best since, and the newest.",
        [picture] if learned > 1 else [],
        [("", standings_table(run))],
    )


def _lost_answers(changes: Changes) -> Part:
    totals = changes.counts.items()
    counts = [f"{lost} of {count} in {task}" for task, (lost, count) in totals if lost]
    return Part(
        "Right then, wrong now",
        "Answers to test prompts that have lost 50 points or more since their task was learned: "
        f"{', '.join(counts) or 'nothing'}.",
        tables=[("The answers that lost most", changes_table(changes.shown))] if counts else [],
    )


def _shown(section: Section) -> Part:
    """A section of the method; its tables open by a click where pictures stand before them."""
    tables = section_tables(replace(section, caption=""), most=sys.maxsize)
    folded = bool(section.pictures) or len(tables) > 1
    return Part(
        section.title,
        " ".join(filter(None, (*section.sentences, section.caption))),
        [drawing_svg(drawing) for drawing in drawings([section])],
        [(str(table.title) if folded else "", table) for table in tables],
    )
