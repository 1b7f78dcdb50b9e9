"""Metrics of a stream, from the score matrix R: R[i][j] = score on task j after learning task i.

Row i holds i + 1 scores, 0 to 100; a cell that was not measured is None. A metric that needs such a
cell, or a second task, is None.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float | None]]


def average_performance(matrix: Matrix) -> float | None:
    """AP = mean of the last row: 1/T Σ_j R[T−1][j]."""
    return _mean(matrix[-1]) if matrix else None


def forgetting(matrix: Matrix) -> float | None:
    """F.Ra = mean over j < T−1 of (max_{i<T−1} R[i][j] − R[T−1][j]); lower is better."""
    last = len(matrix) - 1
    drops: list[float | None] = []
    for j in range(last):
        past = [matrix[i][j] for i in range(j, last)]
        known = [score for score in past if score is not None]
        drops.append(_minus(max(known), matrix[last][j]) if len(known) == len(past) else None)
    return _mean(drops)


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT = mean over j < T−1 of (R[T−1][j] − R[j][j]); negative where tasks were forgotten."""
    last = len(matrix) - 1
    return _mean([_minus(matrix[last][j], matrix[j][j]) for j in range(last)])


def points_lost(matrix: Matrix) -> list[float | None]:
    """Per task the points lost since it was learned, R[j][j] − R[T−1][j]; negative for a gain."""
    return [_minus(matrix[j][j], matrix[-1][j]) for j in range(len(matrix))]


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
) -> dict[str, float | None]:
    """The metrics of a run by name; forward transfer is None until single-task scores are given."""
    return {
        "average_performance": average_performance(matrix),
        "forgetting": forgetting(matrix),
        "forward_transfer": None if single is None else forward_transfer(matrix, single),
        "backward_transfer": backward_transfer(matrix),
        "zero_shot_transfer": zero_shot_transfer(zero_shot),
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
