"""How labels and scores are written in tables and pictures."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from retain.metrics.continual import Drop
from retain.system.printing import escaped

LABEL_CELLS = 24
"""The longest label, in terminal cells (a CJK character takes two)."""


def short(label: str) -> str:
    """Returns a label on one line, control characters escaped, cut to `LABEL_CELLS`."""
    label = escaped(" ".join(label.split()))
    if cell_len(label) <= LABEL_CELLS:
        return label
    return set_cell_size(label, LABEL_CELLS - 1).rstrip() + "…"


def score_text(value: float | None, error: float | None = None) -> str:
    """Returns a score or metric with one decimal; "–" when it was not measured.

    One of a sample of the test examples has its standard error behind "±".
    """
    if value is None:
        return "–"
    # Adding 0.0 turns the -0.0 that round() can leave into 0.0.
    text = f"{round(value, 1) + 0.0:.1f}"
    return text if error is None else f"{text} ± {error:.1f}"


def change_text(drop: Drop | None) -> str:
    """Returns what a score has changed by, as `score_text`, with a sign before a gain too."""
    if drop is None:
        return score_text(None)
    return ("+" if round(drop.points, 1) < 0 else "") + score_text(-drop.points, drop.error)
