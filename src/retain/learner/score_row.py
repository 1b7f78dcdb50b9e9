"""The row of the score matrix after a task; scores that cannot have changed are copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from retain.evaluation.answers import Evaluation, EvaluationConfig
from retain.evaluation.old import ALL, asked_examples, measured_tasks
from retain.learner.seeds import EVALUATION_SLOT, Seeds
from retain.methods.base import Method
from retain.metrics.continual import standard_error
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import EVALUATION, Sample, predictions_file
from retain.system.files import read_jsonl, write_json, write_jsonl
from retain.tasks import Task

DRAW_SLOT = 998
"""The seed slot by which older tasks and their test examples are drawn (`evaluation.old`)."""
CHECKED = 4
"""Answers of an old task that are generated again and compared before its score is copied."""


def score_row(
    run: RunDirectory,
    tasks: Sequence[Task],
    evaluate: Callable[[Task], Evaluation],
    method: Method,
    config: EvaluationConfig,
    seed: int,
    report: Callable[[str], None],
    more: bool,
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
        config: which older tasks are measured, and on which examples.
        seed: the run's.
        report: receives a message if scores were copied.
        more: whether another task follows at once; the last row is of all tasks and examples.
    """
    folder = run.learned()[-1]
    result = folder / EVALUATION
    if run.is_committed(result):
        return
    row: dict[str, Any] = {"scores": [], "routing": [], "samples": []}
    older_rows = results.rows(run)
    newest = len(tasks) - 1
    old = config.old if more else ALL
    measured = measured_tasks(old, newest, Seeds(seed, newest).of(DRAW_SLOT)) | {newest}
    copied = 0
    keeps_answers = not method.traits.forgets
    Seeds(seed, newest).set(EVALUATION_SLOT)
    for j, task in enumerate(tasks):
        score, routing, sample = None, None, None
        if method.waiting:
            pass
        elif keeps_answers and j < newest and _unchanged(run, j, task, evaluate):
            score, routing = older_rows[j].scores[j], older_rows[j].routing[j]
            copied += 1
        elif j in measured:
            path = predictions_file(folder, j)
            count = len(task.test[: config.limit])
            asked = None
            if j < newest:
                asked = asked_examples(old, count, Seeds(seed, j).of(DRAW_SLOT))
            if results.holds(run, path):  # measured before a kill
                cell = Evaluation.from_rows(task, read_jsonl(path))
            else:
                cell = _evaluated(task, asked, evaluate)
                write_jsonl(path, cell.rows)
                run.commit([path])
            score, routing, sample = cell.score, cell.routing, _sample(j, cell, count)
        row["scores"].append(score)
        row["routing"].append(routing)
        if sample is not None:
            row["samples"].append(sample.model_dump())
    if copied:
        report(
            f"{copied} older scores are kept: the method cannot forget, and the first {CHECKED} "
            "answers of each task came out the same"
        )
    write_json(result, row)
    run.commit([result])
    results.write_scores(run)


def _evaluated(
    task: Task, asked: list[int] | None, evaluate: Callable[[Task], Evaluation]
) -> Evaluation:
    """Scores a task on the test examples at the places `asked`, or on all."""
    if asked is None:
        return evaluate(task)
    cell = evaluate(replace(task, test=tuple(task.test[place] for place in asked)))
    rows = [{**row, "example": place} for row, place in zip(cell.rows, asked, strict=True)]
    return replace(cell, rows=rows)


def _sample(number: int, cell: Evaluation, count: int) -> Sample | None:
    """What a score is of; None if of all `count` test examples."""
    if len(cell.rows) == count:
        return None
    error = standard_error([row["score"] for row in cell.rows], count)
    return Sample(task=number, examples=len(cell.rows), of=count, error=error)


def _unchanged(
    run: RunDirectory, number: int, task: Task, evaluate: Callable[[Task], Evaluation]
) -> bool:
    """Tells whether a sample of an old task's answers is as it was right after learning it."""
    stored = read_jsonl(predictions_file(run.learned()[number], number))[:CHECKED]
    current = evaluate(replace(task, test=task.test[:CHECKED])).rows
    return [row["prediction"] for row in stored] == [row["prediction"] for row in current]
