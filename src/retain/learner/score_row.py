"""The row of the score matrix after a task; scores that cannot have changed are copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from retain.evaluation.answers import Evaluation, EvaluationConfig
from retain.evaluation.old import ALL, asked_examples, measured_tasks
from retain.learner.seeds import EVALUATION_SLOT, Seeds
from retain.methods.base import Method
from retain.metrics.continual import standard_error
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import EVALUATION, Row, Sample, predictions_file
from retain.system.files import read_jsonl, write_json, write_jsonl
from retain.tasks import Task

DRAW_SLOT = 998
"""The seed slot by which older tasks and their test examples are drawn (`evaluation.old`)."""
CHECKED = 4
"""Answers of an old task that are generated again and compared before its score is copied."""


@dataclass(frozen=True)
class Cell:
    """What a row holds of one task; nothing where the task is not measured.

    Attributes:
        score: from 0 to 100.
        routing: the mean weights over blocks.
        sample: what the score is of, unless of all test examples.
        is_copy: whether the score is that of the task's own row.
    """

    score: float | None = None
    routing: list[float] | None = None
    sample: Sample | None = None
    is_copy: bool = False


class ScoreRow:
    """The row of the score matrix after the newest task.

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
        more: whether another task follows at once; the last row is of all tasks and examples.
    """

    def __init__(
        self,
        run: RunDirectory,
        tasks: Sequence[Task],
        evaluate: Callable[[Task], Evaluation],
        method: Method,
        config: EvaluationConfig,
        seed: int,
        more: bool,
    ) -> None:
        self._run, self._tasks, self._evaluate = run, tasks, evaluate
        self._method, self._limit, self._seed = method, config.limit, seed
        self._newest = len(tasks) - 1
        self._old = config.old if more else ALL
        draw = Seeds(seed, self._newest).of(DRAW_SLOT)
        self._measured = measured_tasks(self._old, self._newest, draw) | {self._newest}
        self._folder = run.learned()[-1]

    def write(self, report: Callable[[str], None]) -> None:
        """Scores the tasks and writes the row, unless it exists.

        Args:
            report: receives a message if scores were copied.
        """
        result = self._folder / EVALUATION
        if self._run.is_committed(result):
            return
        Seeds(self._seed, self._newest).set(EVALUATION_SLOT)
        cells = [self._cell(number) for number in range(len(self._tasks))]
        if copies := sum(cell.is_copy for cell in cells):
            report(
                f"{copies} older scores are kept: the method cannot forget, and the first "
                f"{CHECKED} answers of each task came out the same"
            )
        row = {
            "scores": [cell.score for cell in cells],
            "routing": [cell.routing for cell in cells],
            "samples": [cell.sample.model_dump() for cell in cells if cell.sample is not None],
        }
        write_json(result, row)
        self._run.commit([result])
        results.write_scores(self._run)

    def _cell(self, number: int) -> Cell:
        if self._method.waiting:
            return Cell()
        if not self._method.traits.forgets and number < self._newest and self._unchanged(number):
            own = self._own_rows[number]
            return Cell(own.scores[number], own.routing[number], is_copy=True)
        return self._measure(number) if number in self._measured else Cell()

    @cached_property
    def _own_rows(self) -> list[Row]:
        """The rows so far; row i was measured right after learning task i."""
        return results.rows(self._run)

    def _unchanged(self, number: int) -> bool:
        """Tells whether a sample of an old task's answers is as right after learning it."""
        task, folder = self._tasks[number], self._run.learned()[number]
        stored = read_jsonl(predictions_file(folder, number))[:CHECKED]
        current = self._evaluate(replace(task, test=task.test[:CHECKED])).rows
        return [row["prediction"] for row in stored] == [row["prediction"] for row in current]

    def _measure(self, number: int) -> Cell:
        """Scores a task, or reads the answers that were scored before a kill."""
        task, path = self._tasks[number], predictions_file(self._folder, number)
        count = len(task.test[: self._limit])
        asked = None
        if number < self._newest:
            asked = asked_examples(self._old, count, Seeds(self._seed, number).of(DRAW_SLOT))
        if results.holds(self._run, path):
            found = Evaluation.from_rows(task, read_jsonl(path))
        else:
            found = _evaluated(task, asked, self._evaluate)
            write_jsonl(path, found.rows)
            self._run.commit([path])
        return Cell(found.score, found.routing, _sample(number, found, count))


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
