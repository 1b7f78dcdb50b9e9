"""Metrics as the published scripts of a paper compute them, for comparison with its tables.

They differ from `continual`, which every run reports: use these beside numbers of the paper only.
Source: the scoring scripts of SAPT (arXiv 2401.08295) and SEEKR (arXiv 2411.06171).
"""

from __future__ import annotations

from retain.metrics.continual import Matrix, backward_transfer

SAPT_SINGLE = 50.94
"""The constant that SAPT's script subtracts for FWT: its T5-large SuperNI single-task mean."""


def sapt_backward_transfer(matrix: Matrix) -> float | None:
    """BWT as SAPT's and SEEKR's scripts compute it: the sum of `continual`, over T and not T−1."""
    value = backward_transfer(matrix)
    return None if value is None else value * (len(matrix) - 1) / len(matrix)


def sapt_forward_transfer(matrix: Matrix) -> float | None:
    """FWT as SAPT's script computes it: mean of the diagonal − `SAPT_SINGLE`."""
    diagonal = [row[i] for i, row in enumerate(matrix)]
    known = [score for score in diagonal if score is not None]
    return sum(known) / len(known) - SAPT_SINGLE if known and len(known) == len(diagonal) else None
