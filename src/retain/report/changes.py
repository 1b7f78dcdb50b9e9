"""Answers that were right when their task was learned and are wrong now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from retain.report.layout import new_table
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Prediction, predictions_file, read_records

LOST = 50.0
"""Points of its metric that an answer has to lose to count."""
SHOWN = 5
"""Most answers shown of a task, those that lost most first."""


@dataclass(frozen=True)
class Lost:
    """An answer that was right then and is wrong now; points are of the metric, 0 to 100."""

    task: str
    prompt: str
    references: list[str]
    then: str
    now: str
    points: float


@dataclass(frozen=True)
class Changes:
    """By task but the newest, in the order learned: how many answers of how many were lost.

    `shown` are those to show.
    """

    counts: dict[str, tuple[int, int]]
    shown: list[Lost]


def read_changes(run: RunDirectory) -> Changes:
    """Compares each task's predictions right after learning it with its newest.

    Raises:
        RetainError: when a file of predictions is damaged.
    """
    newest = results.newest_predictions(run)
    counts: dict[str, tuple[int, int]] = {}
    shown: list[Lost] = []
    for index, folder in enumerate(run.learned()[:-1]):
        name = results.task_record(run, folder).name
        first = predictions_file(folder, index)
        if name not in newest or not results.holds(run, first):
            continue
        then, now = (read_records(Prediction, path) for path in (first, newest[name]))
        lost = [
            Lost(name, old.prompt, old.references, old.prediction, new.prediction, points)
            for old, new in zip(then, now, strict=False)
            if (points := old.score - new.score) >= LOST
        ]
        counts[name] = (len(lost), len(then))
        shown += sorted(lost, key=lambda answer: -answer.points)[:SHOWN]
    return Changes(counts, shown)


def changes_table(shown: Sequence[Lost]) -> Table:
    """Prompt, expected answer, answer then and now."""
    table = new_table("", ["prompt", "expected", "answer then", "answer now"])
    for column in table.columns:
        column.justify = "left"
    for each in shown:
        words = (short(each.task), each.prompt, " / ".join(each.references), each.then, each.now)
        table.add_row(*map(Text, words))
    return table
