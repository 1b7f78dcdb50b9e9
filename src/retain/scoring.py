"""The row of the score matrix after a task: what is decoded again, and what is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retain import results
from retain.evaluation import Evaluation
from retain.files import write_json, write_jsonl
from retain.learning import Seeds
from retain.methods.base import Method
from retain.records import EVALUATION, predictions_file
from retain.store import RunDirectory
from retain.tasks import Task


def score_row(
    run: RunDirectory,
    tasks: Sequence[Task],
    evaluate: Callable[[Task], Evaluation],
    method: Method,
    seeds: Seeds,
) -> None:
    """Scores all tasks so far and writes their row, unless it is there already.

    A method that cannot forget keeps its older cells; one that still waits for tasks has none.
    """
    folder = run.learned()[-1]
    result = folder / EVALUATION
    if run.commits(result):
        return
    row: dict[str, Any] = {"scores": [], "routing": []}
    before = results.rows(run)
    seeds(999)
    for j, task in enumerate(tasks):
        if method.waiting:
            score, routing = None, None
        elif not method.forgets and j < len(tasks) - 1:
            score, routing = before[-1]["scores"][j], before[-1]["routing"][j]
        else:
            cell = evaluate(task)
            path = predictions_file(folder, j)
            write_jsonl(path, cell.rows)
            run.commit([path])
            score, routing = cell.score, cell.routing
        row["scores"].append(score)
        row["routing"].append(routing)
    write_json(result, row)
    run.commit([result])
    results.write_scores(run)
