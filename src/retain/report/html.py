"""One self-contained HTML page about one or several runs."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from retain.report.plots import heat_map
from retain.report.summary import METRIC_LABELS, RunSummary, score_text, sentence


def render(summaries: Sequence[RunSummary]) -> str:
    """The page as text: no scripts and no external resources, equal for equal input.

    Each run gets its sentence, its score matrix as heat map and table, the attention of its
    tasks over the blocks when it has routing, and its settings.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = score_text
    template = files("retain.report").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        metrics=METRIC_LABELS,
        runs=[
            {
                "summary": summary,
                "sentence": sentence(summary),
                "scores": _scores(summary),
                "routing": _routing(summary),
            }
            for summary in summaries
        ],
    )


def _scores(summary: RunSummary) -> Markup | None:
    if not summary.matrix:
        return None
    title = f"Scores of {summary.label}"
    return Markup(heat_map(summary.matrix, summary.row_labels, summary.tasks, title, 100.0))


def _routing(summary: RunSummary) -> Markup | None:
    if not summary.routing:
        return None
    rows, columns = len(summary.routing), max(len(row) for row in summary.routing)
    title = "Attention of each task over the blocks"
    return Markup(
        heat_map(summary.routing, summary.tasks[:rows], summary.tasks[:columns], title, 1.0)
    )
