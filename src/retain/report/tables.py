"""Score matrices and metrics: for the terminal (rich), for Markdown, and as a picture."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retain.errors import RetainError
from retain.metrics.continual import Drop
from retain.report.layout import cuts, new_table
from retain.report.plots import new_panel, panels_png
from retain.report.summary import (
    METRIC_LABELS,
    NO_AVERAGE,
    NO_FORGETTING,
    NO_FORWARD_TRANSFER,
    RunSummary,
    samples_note,
    sentence,
    with_distinct_labels,
)
from retain.runs.labels import change_text, score_text, short
from retain.runs.results import TaskCost
from retain.system.printing import escaped


def score_table(summary: RunSummary, columns: range | None = None) -> Table:
    """The score matrix: a row "after <number> <task>" per learned task, a column per number.

    Cells above the diagonal are empty; "–" marks a score that was not measured, and "±" one of a
    sample. `columns` limits the table to these task indices and to the rows that reach them; None
    shows all.
    """
    columns = columns if columns is not None else range(len(summary.tasks))
    table = new_table(summary.label, [str(j + 1) for j in columns])
    for i, row in enumerate(summary.matrix):
        cells = [summary.cell(i, j) if j < len(row) else "" for j in columns]
        if any(cells):
            table.add_row(Text(f"after {i + 1} {short(summary.tasks[i])}"), *cells)
    return table


def metrics_table(summaries: Sequence[RunSummary]) -> Table:
    """Table with a row per metric that a run has, a column per run; in points, "–" when unknown."""
    table = new_table("Metrics", [summary.label for summary in summaries])
    for row in _metric_rows(summaries):
        table.add_row(*row)
    return table


def metrics_notes(summaries: Sequence[RunSummary]) -> list[str]:
    """Notes below the metrics: what rests on samples, that tasks differ, and why some are "–"."""
    notes = [run.compaction for run in summaries if run.compaction]
    scored = [run.examined[: len(run.matrix)] for run in summaries]
    if len({frozenset(task.test for task in tasks) for tasks in scored}) > 1:
        notes.append("These runs do not have the same tasks: their AP cannot be compared.")
    gains = [run.metrics.get("forward_transfer") for run in summaries]
    if None in gains and any(gain is not None for gain in gains):  # or it has no row
        notes.append(NO_FORWARD_TRANSFER)
    if samples := [sample for run in summaries for sample in run.samples.values()]:
        notes.append(samples_note(samples))
    if any(run.metrics.get("forgetting") is None and run.drops for run in summaries) and any(
        run.metrics.get("backward_transfer") is not None for run in summaries
    ):
        notes.append(NO_FORGETTING)
    if any(run.matrix and run.metrics.get("average_performance") is None for run in summaries):
        notes.append(NO_AVERAGE)
    return notes


def side_by_side(summaries: Sequence[RunSummary]) -> RenderableType:
    """Score tables next to each other, stacked where the terminal is narrow, then the metrics.

    A matrix of more than `TASKS_PER_TABLE` tasks is cut into several tables.
    """
    summaries = with_distinct_labels(summaries)
    tables = [
        score_table(summary, columns)
        for summary in summaries
        for columns in cuts(len(summary.matrix))
    ]
    metrics = metrics_table(summaries)
    if not metrics.row_count:
        return Group(Columns(tables))
    return Group(Columns(tables), metrics, *map(Text, metrics_notes(summaries)))


def examined_table(summary: RunSummary) -> Table:
    """Table of each task's number, metric, and how many examples it was tested and trained on."""
    table = new_table("", ["metric", "test examples", "trained on"])
    for number, task in enumerate(summary.examined, start=1):
        counts = f"{task.tested:,}", f"{task.trained:,}"
        table.add_row(Text(f"{number} {short(task.task)}"), Text(task.metric), *counts)
    return table


def standings_table(summary: RunSummary) -> Table:
    """Table of each task's score right after learning, its best, the newest, and the change."""
    table = new_table("", ["then", "best", "now", "change"])
    last = len(summary.matrix) - 1
    changes = [*(drops.since_learned for drops in summary.drops), _none_yet(summary)]
    for j, task in enumerate(summary.tasks[: last + 1]):
        scores = {
            i: score for i in range(j, last + 1) if (score := summary.matrix[i][j]) is not None
        }
        best = summary.cell(max(scores, key=lambda i: scores[i]), j) if scores else score_text(None)
        cells = (summary.cell(j, j), best, summary.cell(last, j), change_text(changes[j]))
        table.add_row(Text(short(task)), *cells)
    return table


def cost_table(summary: RunSummary) -> Table:
    """Table of what each task took: minutes of training, trained parameters, kB that are kept."""
    table = new_table("", ["minutes of training", "parameters", "kB"])

    def add(label: str, costs: Sequence[TaskCost], parameters: str) -> None:
        minutes = sum(cost.seconds for cost in costs) / 60
        size = sum(cost.bytes for cost in costs) / 1e3
        table.add_row(Text(label), f"{minutes:.1f}", parameters, f"{size:,.0f}")

    for task, cost in zip(summary.tasks, summary.costs, strict=True):
        add(short(task), [cost], f"{cost.parameters:,}")
    table.add_section()
    add("all", summary.costs, "–")
    return table


def markdown(summaries: Sequence[RunSummary]) -> str:
    """GitHub Markdown: each run's sentence and score table under its label, then the metrics."""
    summaries = with_distinct_labels(summaries)
    parts = []
    for summary in summaries:
        rows = [
            [
                label,
                *(summary.cell(i, j) for j in range(i + 1)),
                *[""] * (len(summary.tasks) - i - 1),
            ]
            for i, label in enumerate(summary.row_labels)
        ]
        parts += [f"### {_escape(summary.label)}", _escape(sentence(summary))]
        parts.append(_markdown_table(summary.tasks, rows))
    labels = [summary.label for summary in summaries]
    if rows := _metric_rows(summaries):
        parts += ["### Metrics", _markdown_table(labels, rows)]
        parts += map(_escape, metrics_notes(summaries))
    return escaped("\n\n".join(parts) + "\n")


def matrices_png(summaries: Sequence[RunSummary], path: Path) -> None:
    """Writes the score matrices of all runs side by side as one PNG picture to `path`.

    Raises RetainError when a run has no scores yet. Characters that matplotlib's
    DejaVu Sans lacks (such as Chinese) appear as boxes, with a UserWarning from matplotlib.
    """
    for summary in summaries:
        if not summary.matrix:
            raise RetainError(f"{summary.label}: no scores to draw yet; let it finish a task")
    panels_png(
        [
            new_panel(s.matrix, s.row_labels, s.tasks, s.label, 100.0, s.samples)
            for s in with_distinct_labels(summaries)
        ],
        path,
    )


def _none_yet(summary: RunSummary) -> Drop | None:
    """The newest task's change: none, if it is scored."""
    return Drop(0.0) if summary.matrix and summary.matrix[-1][-1] is not None else None


def _metric_rows(summaries: Sequence[RunSummary]) -> list[list[str]]:
    """Label and values of each metric that at least one run has."""
    return [
        [words, *(summary.metric(key) for summary in summaries)]
        for key, words in METRIC_LABELS.items()
        if any(summary.metrics.get(key) is not None for summary in summaries)
    ]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [["", *columns], *rows]
    texts = ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]
    texts.insert(1, "| --- |" + " ---: |" * len(columns))
    return "\n".join(texts)


def _escape(text: str) -> str:
    """`text` on one line, with the characters that Markdown or HTML would interpret escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))
