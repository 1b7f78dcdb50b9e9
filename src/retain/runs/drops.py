"""What each older task of a run has lost, between scores of the same test examples.

A score of a sample (`evaluation.old`) is compared with another row's by that row's answers to the
same examples, which the run has stored; so no difference comes from which examples were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from statistics import fmean

from retain.errors import RetainError
from retain.metrics import continual
from retain.metrics.continual import Drop, Drops
from retain.runs.directory import RunDirectory
from retain.runs.records import Prediction, Row, predictions_file, read_records


def dropped(run: RunDirectory, rows: Sequence[Row]) -> list[Drops]:
    """What every task but the newest has lost at the last of a run's rows.

    Raises:
        RetainError: when predictions are damaged, missing, or of other examples than their row.
    """
    lost = continual.drops([row.scores for row in rows])
    return [
        _Column(run, rows, j).drops if any(row.sample(j) for row in rows[j:]) else drops
        for j, drops in enumerate(lost)
    ]


class _Column:
    """The scores of one older task j, at least one of which is of a sample.

    All samples of a task are the same one.
    """

    def __init__(self, run: RunDirectory, rows: Sequence[Row], task: int) -> None:
        self._run, self._rows, self._task = run, rows, task
        self._last = len(rows) - 1
        self._read: dict[int, list[float]] = {}

    @property
    def drops(self) -> Drops:
        past = [self._points(i) for i in range(self._task, self._last)]
        known = {i: points for i, points in enumerate(past, self._task) if points is not None}
        best = max(known, key=lambda i: known[i], default=None) if len(known) == len(past) else None
        return Drops(
            self._drop(self._task) if self._task in known else None,
            None if best is None else self._drop(best),
        )

    def _is_whole(self, row: int) -> bool:
        """Whether row and last row are both of all test examples."""
        return not (self._rows[row].sample(self._task) or self._rows[-1].sample(self._task))

    def _points(self, row: int) -> float | None:
        then, now = self._rows[row].scores[self._task], self._rows[-1].scores[self._task]
        if then is None or now is None:
            return None
        return then - now if self._is_whole(row) else self._mean(row) - self._mean(self._last)

    def _mean(self, row: int) -> float:
        """A row's score over the sample; a row that is of the sample has it already."""
        score = self._rows[row].scores[self._task]
        sampled = self._rows[row].sample(self._task) is not None
        return score if sampled and score is not None else fmean(self._values(row))

    def _drop(self, row: int) -> Drop:
        points = self._points(row)
        assert points is not None  # both are measured
        if self._is_whole(row):
            return Drop(points)
        pairs = zip(self._values(row), self._values(self._last), strict=True)
        _, count = self._sample
        return Drop(points, continual.standard_error([then - now for then, now in pairs], count))

    @cached_property
    def _sample(self) -> tuple[list[int], int]:
        """Places in the test split of the examples of the sample, and of how many they are."""
        for number, row in enumerate(self._rows):
            if sample := row.sample(self._task):
                rows, path = self._predictions(number)
                places = [row.example for row in rows if row.example is not None]
                if not len(places) == len(rows) == sample.examples or max(places) >= sample.of:
                    raise RetainError(f"{path}: not of {sample.examples} sampled examples; {COPY}")
                return places, sample.of
        raise AssertionError("no score of this task is of a sample")

    def _values(self, row: int) -> list[float]:
        """A row's scores of the examples of the sample, in their order."""
        if row not in self._read:
            predictions, path = self._predictions(row)
            places, count = self._sample
            if self._rows[row].sample(self._task) is None and len(predictions) == count:
                predictions = [predictions[place] for place in places]
            elif [prediction.example for prediction in predictions] != places:
                raise RetainError(f"{path}: of other examples than the task's sample; {COPY}")
            self._read[row] = [prediction.score for prediction in predictions]
        return self._read[row]

    def _predictions(self, row: int) -> tuple[list[Prediction], str]:
        """The answers of a row; of a score that was copied, those right after learning."""
        folders = self._run.learned()
        paths = [predictions_file(folders[i], self._task) for i in (row, self._task)]
        path = next((path for path in paths if self._run.is_committed(path)), None)
        if path is None:
            raise RetainError(f"{paths[0]}: missing, though its score is there; {COPY}")
        name = path.relative_to(self._run.path).as_posix()
        self._run.check(name)
        return read_records(Prediction, path), str(path)


COPY = "restore the run from a copy"
