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
"""Points that an answer has to lose under its metric to count as lost."""
SHOWN = 5
"""Most answers shown per task, those that lost most first."""


@dataclass(frozen=True)
class Lost:
    """An answer that was right when its task was learned and is wrong now; `points` were lost."""

    task: str
    prompt: str
    references: list[str]
    then: str
    now: str
    points: float


@dataclass(frozen=True)
class Changes:
    """Lost answers of all tasks but the newest.

    Attributes:
        counts: by task, in the order learned, how many answers were lost, and of how many.
        shown: the answers to show.
    """

    counts: dict[str, tuple[int, int]]
    shown: list[Lost]


def read_changes(run: RunDirectory) -> Changes:
    """Compares the predictions right after a task was learned with the newest ones.

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
        asked = [place if row.example is None else row.example for place, row in enumerate(now)]
        then = [row for place, row in enumerate(then) if place in set(asked)]
        lost = [
            Lost(name, old.prompt, old.references, old.prediction, new.prediction, points)
            for old, new in zip(then, now, strict=False)
            if (points := old.score - new.score) >= LOST
        ]
        counts[name] = (len(lost), len(then))
        shown += sorted(lost, key=lambda answer: -answer.points)[:SHOWN]
    return Changes(counts, shown)


def changes_table(shown: Sequence[Lost]) -> Table:
    """Table of lost answers: prompt, expected answer, answer then and now."""
    table = new_table("", ["prompt", "expected", "answer then", "answer now"])
    for column in table.columns:
        column.justify = "left"
    for lost in shown:
        words = (short(lost.task), lost.prompt, " / ".join(lost.references), lost.then, lost.now)
        table.add_row(*map(Text, words))
    return table
