"""Reports of finished runs: terminal tables, Markdown, pictures and a self-contained HTML page."""

from retain.report.html import render
from retain.report.plots import heat_map
from retain.report.reader import summarise
from retain.report.summary import RunSummary, sentence
from retain.report.tables import (
    markdown,
    matrices_png,
    metrics_table,
    score_table,
    side_by_side,
)

__all__ = [
    "RunSummary",
    "heat_map",
    "markdown",
    "matrices_png",
    "metrics_table",
    "render",
    "score_table",
    "sentence",
    "side_by_side",
    "summarise",
]
