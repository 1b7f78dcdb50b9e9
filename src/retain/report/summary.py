"""The summary of one run that reports are made from, and its sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retain.methods import find
from retain.metrics.continual import Drops, drops
from retain.report.changes import Changes
from retain.report.losses import PhaseLosses
from retain.runs.labels import score_text
from retain.runs.records import Sample
from retain.runs.results import TaskCost
from retain.runs.sections import Section

METRIC_LABELS = {
    "average_performance": "AP: average score at the end (higher is better)",
    "forgetting": "F.Ra: points lost since the best (lower is better)",
    "backward_transfer": "BWT: change on earlier tasks (higher is better)",
    "forward_transfer": "FWT: gain from earlier tasks (higher is better)",
}
"""Row label by metric, in the order in which reports show them."""
NO_FORWARD_TRANSFER = (
    "FWT: score right after learning minus that of a pertask run; – until retain report RUN "
    "--single PERTASK_RUN has been given one."
)
"""Note below a table in which FWT is "–"."""


NO_FORGETTING = (
    "F.Ra: the best of all earlier scores minus the newest; – where evaluation.old left some out. "
    "BWT needs only those right after learning."
)
"""Note below a table in which F.Ra is "–" because of `evaluation.old: sampled N`."""
NO_AVERAGE = (
    "AP: – where the last row lacks scores: while tasks wait to be learned together, and under "
    "evaluation.old: sampled before a stream's last task and after a rollback."
)
"""Note below a table in which AP is "–"."""


def samples_note(samples: Collection[Sample]) -> str:
    """A sentence on how many test examples the scores with "±" rest on."""
    asked = sorted({sample.examples for sample in samples})
    of = sorted({sample.of for sample in samples})
    return (
        f"± is the standard error of a score of {_span(asked)} test examples, drawn from "
        f"{_span(of)} (evaluation.old), or of what rests on such scores. Differences are over the "
        "same examples."
    )


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def not_as_published(label: str, method: str, options: Mapping[str, Any]) -> str | None:
    """A sentence on a run of a published method with other options than its paper's, or None.

    A run is named after its method, and must not be taken for the paper's row.

    Args:
        label: what the run is called.
        method: the method's name.
        options: its options, nested or as `a.b`.
    """
    known = find(method)
    if known is None:
        return None
    chosen = str(options.get("preset"))
    preset = chosen if chosen in known.Config.presets else "paper"
    if unlike := known.Config.unlike_preset(options, preset):
        advice = "" if preset == chosen else "; preset=paper has the published ones"
        return f"`{label}` is not as published, in {', '.join(unlike)}{advice}"
    if preset != "paper":
        return f"`{label}` is as preset={preset} has it, not as the method's own paper"
    return None


@dataclass(frozen=True)
class Examined:
    """What a task's scores are based on: its metric, and how many examples it has.

    A score is the mean over `tested` test examples, whose checksum is `fingerprint`. `trained` is
    the number of training examples.
    """

    task: str
    metric: str
    tested: int
    trained: int
    fingerprint: str = ""

    @property
    def test(self) -> tuple[str, str, int, str]:
        """Key that two runs share if their scores on the task can be compared."""
        return (self.task, self.metric, self.tested, self.fingerprint)


@dataclass(frozen=True)
class RunSummary:
    """One run, as a report shows it.

    `matrix[i][j]` is the score (0..100) on task j after learning task i. Row i holds i+1 entries;
    None means not measured. The newest task has no row while it is not scored.
    `samples[i, j]` is there if that score covers only a sample of the task's test examples.
    `metrics` maps the keys of `METRIC_LABELS` to points; a missing key counts as None.
    `standard_errors` has the metrics that are computed from such scores. `dropped` is what each
    task but the newest has lost, over examples that both scores cover. It may be left out if every
    score covers all test examples; the losses then follow from `matrix`.
    `folder` is the run's absolute path. `examined` has an entry per learned task. `sections` are
    the method's tables and pictures, `losses` the training losses, `changes` the answers that were
    right once and are not any more, and `costs` the parameters and seconds of each learned task.
    `compaction` is a sentence on a compaction that the scores do not show.
    """

    label: str
    method: str
    backbone: str
    tasks: list[str]
    matrix: list[list[float | None]]
    metrics: dict[str, float | None]
    folder: Path = Path()
    examined: Sequence[Examined] = ()
    settings: dict[str, object] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    losses: Sequence[PhaseLosses] = ()
    changes: Changes | None = None
    costs: Sequence[TaskCost] = ()
    samples: Mapping[tuple[int, int], Sample] = field(default_factory=dict)
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    dropped: Sequence[Drops] | None = None
    compaction: str = ""

    @property
    def drops(self) -> Sequence[Drops]:
        """What each scored task but the newest has lost at the last row."""
        return drops(self.matrix) if self.dropped is None else self.dropped

    def cell(self, row: int, task: int) -> str:
        """A score of the matrix as text, with its standard error if it is of a sample."""
        sample = self.samples.get((row, task))
        return score_text(self.matrix[row][task], None if sample is None else sample.error)

    def metric(self, key: str) -> str:
        """A metric as text, with its standard error if it rests on samples."""
        return score_text(self.metrics.get(key), self.standard_errors.get(key))

    @property
    def row_labels(self) -> list[str]:
        """One label such as "after tickets" per row of `matrix`."""
        return [f"after {task}" for task in self.tasks[: len(self.matrix)]]


def with_distinct_labels(summaries: Sequence[RunSummary]) -> list[RunSummary]:
    """Returns the runs with distinct labels: folders of one name get the path that differs."""

    def label(run: RunSummary) -> str:
        same = {other.folder.parts for other in summaries if other.label == run.label}
        for depth in range(1, len(run.folder.parts)):
            if len({parts[-depth:] for parts in same}) == len(same):
                return "/".join(run.folder.parts[-depth:])
        return run.label

    return [replace(run, label=label(run)) for run in summaries]


def sentence(summary: RunSummary) -> str:
    """One sentence on what the run learned, how it scores and what it forgot."""
    scored, learned = len(summary.matrix), len(summary.tasks)
    if learned == 0:
        return f"{summary.label} has not finished a task yet."
    start = f"{summary.label} learned {learned} {'task' if learned == 1 else 'tasks'}"
    if scored == 0:
        return f"{start}; its score is not measured yet."
    if scored < learned:
        start += ", the newest not scored yet"
    average = summary.metrics.get("average_performance")
    lost = summary.metrics.get("forgetting")
    if learned == 1:
        known = "unknown" if average is None else summary.metric("average_performance")
        return f"{start}; its score is {known}."
    parts = []
    if average is not None:
        parts.append(f"scores {summary.metric('average_performance')} on average")
    if lost is not None:
        error = summary.standard_errors.get("forgetting")
        parts.append(_lost_text(round(lost, 1), error) + (_most_lost(summary) if lost > 0 else ""))
    if not parts:
        return f"{start}; its scores were not measured."
    when = "after the last it" if scored == learned else "after the one before, it"
    return f"{start}; {when} {' and '.join(parts)}."


def _lost_text(lost: float, error: float | None) -> str:
    points = f"{score_text(abs(lost), error)} points"
    if lost > 0:
        return f"lost {points} on earlier tasks since the best score each ever had"
    if lost < 0:
        return f"gained {points} on earlier tasks over the best score each had before"
    return "lost nothing on earlier tasks" if error is None else f"lost {points} on earlier tasks"


def _most_lost(summary: RunSummary) -> str:
    """Phrase on which of several earlier tasks lost most, and its points."""
    lost = [
        (drops.since_best, task)
        for drops, task in zip(summary.drops, summary.tasks, strict=False)
        if drops.since_best is not None
    ]
    if len(summary.matrix) < 3 or not lost:
        return ""
    drop, task = max(lost, key=lambda one: one[0].points)
    return f", most on {task} ({score_text(drop.points, drop.error)})"
