"""Metrics of a stream, from the score matrix R: R[i][j] = score on task j after learning task i.

Row i holds i + 1 scores, 0 to 100; a cell that was not measured is None. A metric that needs such a
cell, or a second task, is None. A cell may be of a sample of its task's test examples; what was
lost between two rows is then taken over the examples that both have answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import stdev

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Drop:
    """Points that a task has lost between two rows; `error` is None if over all test examples.

    Over a sample of them it is the standard error, as in `standard_error`.
    """

    points: float
    error: float | None = None


@dataclass(frozen=True)
class Drops:
    """What an older task has lost at the last row T−1; None where a cell is not measured.

    Attributes:
        since_learned: R[j][j] − R[T−1][j].
        since_best: max over j ≤ i < T−1 of R[i][j] − R[T−1][j].
    """

    since_learned: Drop | None
    since_best: Drop | None


def drops(matrix: Matrix) -> list[Drops]:
    """What every task but the newest has lost, where every cell is over all test examples."""
    last = len(matrix) - 1
    lost = []
    for j in range(last):
        past = [_minus(matrix[i][j], matrix[last][j]) for i in range(j, last)]
        known = [Drop(points) for points in past if points is not None]
        best = max(known, key=lambda drop: drop.points) if len(known) == len(past) else None
        lost.append(Drops(None if past[0] is None else Drop(past[0]), best))
    return lost


def standard_error(values: Sequence[float], population: int) -> float:
    """Standard error of the mean of n values, drawn from N without replacement: s/√n · √(1 − n/N).

    It is 0 for n = N, and also where all n values are alike, which says little if n is small
    (Cochran, Sampling Techniques, 1977, section 2.6).

    Args:
        values: n ≥ 2 of them.
        population: N.
    """
    count = len(values)
    return stdev(values) / sqrt(count) * sqrt(1 - count / population)


def average_performance(matrix: Matrix) -> float | None:
    """AP = mean of the last row: 1/T Σ_j R[T−1][j]."""
    return _mean(matrix[-1]) if matrix else None


def forgetting(matrix: Matrix) -> float | None:
    """F.Ra = mean over j < T−1 of (max_{i<T−1} R[i][j] − R[T−1][j]); lower is better."""
    return _forgetting(drops(matrix))


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT = mean over j < T−1 of (R[T−1][j] − R[j][j]); negative where tasks were forgotten."""
    return _backward_transfer(drops(matrix))


def forward_transfer(matrix: Matrix, single: Sequence[float | None]) -> float | None:
    """FWT = mean over j of (R[j][j] − single_j), single_j from a model trained on j alone."""
    return _mean([_minus(matrix[j][j], single[j]) for j in range(len(matrix))])


def zero_shot_transfer(zero_shot: Sequence[float | None]) -> float | None:
    """Mean over j > 0 of the score on task j just before learning it."""
    return _mean(zero_shot[1:])


def summary(
    matrix: Matrix,
    single: Sequence[float | None] | None = None,
    zero_shot: Sequence[float | None] = (),
    lost: Sequence[Drops] | None = None,
) -> dict[str, float | None]:
    """The metrics of a run by name; forward transfer is None until single-task scores are given.

    Args:
        matrix: the score matrix.
        single: scores of one model per task.
        zero_shot: scores just before learning.
        lost: what older tasks have lost; needed where cells are of samples.
    """
    lost = drops(matrix) if lost is None else lost
    return {
        "average_performance": average_performance(matrix),
        "forgetting": _forgetting(lost),
        "forward_transfer": None if single is None else forward_transfer(matrix, single),
        "backward_transfer": _backward_transfer(lost),
        "zero_shot_transfer": zero_shot_transfer(zero_shot),
    }


def standard_errors(last_row: Sequence[float | None], lost: Sequence[Drops]) -> dict[str, float]:
    """Standard errors of the metrics that rest on samples, by name; the others are left out.

    Args:
        last_row: of each score of the last row its standard error; None if over all test examples.
        lost: as in `summary`. The largest of several estimates is a little too large on average,
            so that F.Ra of small samples is; its error does not count that.
    """
    of_terms: dict[str, list[float | None]] = {
        "average_performance": list(last_row),
        "forgetting": [d.since_best.error if d.since_best else None for d in lost],
        "backward_transfer": [d.since_learned.error if d.since_learned else None for d in lost],
    }
    return {
        name: sqrt(sum(error**2 for error in errors if error is not None)) / len(errors)
        for name, errors in of_terms.items()
        if any(error is not None for error in errors)
    }


def _forgetting(lost: Sequence[Drops]) -> float | None:
    return _mean([drop.since_best.points if drop.since_best else None for drop in lost])


def _backward_transfer(lost: Sequence[Drops]) -> float | None:
    mean = _mean([drop.since_learned.points if drop.since_learned else None for drop in lost])
    return None if mean is None else 0.0 - mean  # no change is 0.0, not -0.0


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
