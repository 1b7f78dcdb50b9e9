"""The row of the score matrix after a task: what is decoded again, and what is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from retain.evaluation.answers import Evaluation
from retain.learner.lesson import Seeds
from retain.methods.base import Method
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import EVALUATION, predictions_file
from retain.system.files import read_jsonl, write_json, write_jsonl
from retain.tasks import Task

CHECKED = 4
"""How many of an old task's answers are decoded again before its cell is copied."""


def score_row(
    run: RunDirectory,
    tasks: Sequence[Task],
    evaluate: Callable[[Task], Evaluation],
    method: Method,
    seeds: Seeds,
    tell: Callable[[str], None],
) -> None:
    """Scores all tasks so far and writes their row, unless it is there already.

    A method that cannot forget keeps its older cells, once a sample of their answers has come out
    the same; one that still waits for tasks has none. `tell` hears which are kept. A cell that was
    measured before a kill is not measured again.
    """
    folder = run.learned()[-1]
    result = folder / EVALUATION
    if run.commits(result):
        return
    row: dict[str, Any] = {"scores": [], "routing": []}
    before = results.rows(run)
    copied = 0
    keeps_answers = not method.traits.forgets
    seeds.set(999)
    for j, task in enumerate(tasks):
        if method.waiting:
            score, routing = None, None
        elif keeps_answers and j < len(tasks) - 1 and _unchanged(run, j, task, evaluate):
            score, routing = before[-1].scores[j], before[-1].routing[j]
            copied += 1
        else:
            path = predictions_file(folder, j)
            if results.holds(run, path):  # since before a kill
                cell = Evaluation.from_rows(task.metric, read_jsonl(path))
            else:
                cell = evaluate(task)
                write_jsonl(path, cell.rows)
                run.commit([path])
            score, routing = cell.score, cell.routing
        row["scores"].append(score)
        row["routing"].append(routing)
    if copied:
        tell(
            f"{copied} older scores are kept: the method cannot forget, and the first {CHECKED} "
            "answers of each task came out the same"
        )
    write_json(result, row)
    run.commit([result])
    results.write_scores(run)


def _unchanged(
    run: RunDirectory, number: int, task: Task, evaluate: Callable[[Task], Evaluation]
) -> bool:
    """Whether a sample of an old task's answers is what it was right after learning it."""
    then = read_jsonl(predictions_file(run.learned()[number], number))[:CHECKED]
    now = evaluate(replace(task, test=task.test[:CHECKED])).rows
    return [row["prediction"] for row in then] == [row["prediction"] for row in now]
