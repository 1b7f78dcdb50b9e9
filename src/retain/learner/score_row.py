"""The row of the score matrix after a task; scores that cannot have changed are copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from retain.evaluation.answers import Evaluation
from retain.learner.lesson import EVALUATION_SLOT, Seeds
from retain.methods.base import Method
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import EVALUATION, predictions_file
from retain.system.files import read_jsonl, write_json, write_jsonl
from retain.tasks import Task

CHECKED = 4
"""Answers of an old task that are generated again and compared before its score is copied."""


def score_row(
    run: RunDirectory,
    tasks: Sequence[Task],
    evaluate: Callable[[Task], Evaluation],
    method: Method,
    seeds: Seeds,
    report: Callable[[str], None],
) -> None:
    """Scores all tasks so far and writes their row of the score matrix, unless it exists.

    For a method that cannot forget, the score of an older task is copied if a sample of its answers
    is still the same. For a method that waits for more tasks, the row is empty. A score that was
    measured before a kill is not measured again.

    Args:
        run: the run's folder.
        tasks: all learned tasks, oldest first.
        evaluate: answers a task's test examples and scores them.
        method: the method that learned the tasks.
        seeds: the newest task's seeds.
        report: receives a message if scores were copied.
    """
    folder = run.learned()[-1]
    result = folder / EVALUATION
    if run.is_committed(result):
        return
    row: dict[str, Any] = {"scores": [], "routing": []}
    older_rows = results.rows(run)
    copied = 0
    keeps_answers = not method.traits.forgets
    seeds.set(EVALUATION_SLOT)
    for j, task in enumerate(tasks):
        if method.waiting:
            score, routing = None, None
        elif keeps_answers and j < len(tasks) - 1 and _unchanged(run, j, task, evaluate):
            score, routing = older_rows[-1].scores[j], older_rows[-1].routing[j]
            copied += 1
        else:
            path = predictions_file(folder, j)
            if results.holds(run, path):  # measured before a kill
                cell = Evaluation.from_rows(task, read_jsonl(path))
            else:
                cell = evaluate(task)
                write_jsonl(path, cell.rows)
                run.commit([path])
            score, routing = cell.score, cell.routing
        row["scores"].append(score)
        row["routing"].append(routing)
    if copied:
        report(
            f"{copied} older scores are kept: the method cannot forget, and the first {CHECKED} "
            "answers of each task came out the same"
        )
    write_json(result, row)
    run.commit([result])
    results.write_scores(run)


def _unchanged(
    run: RunDirectory, number: int, task: Task, evaluate: Callable[[Task], Evaluation]
) -> bool:
    """Tells whether a sample of an old task's answers is as it was right after learning it."""
    stored = read_jsonl(predictions_file(run.learned()[number], number))[:CHECKED]
    current = evaluate(replace(task, test=task.test[:CHECKED])).rows
    return [row["prediction"] for row in stored] == [row["prediction"] for row in current]
