"""Reads what a report shows from a run directory."""

from __future__ import annotations

from pathlib import Path

from retain.methods.base import flat
from retain.report.changes import read_changes
from retain.report.draw_sections import read_sections
from retain.report.losses import read_losses
from retain.report.summary import Examined, RunSummary
from retain.runs import results
from retain.runs.compacted import compaction_note
from retain.runs.records import SCORES, TaskRecord


def summarise(folder: Path) -> RunSummary:
    """Reads all that a report shows of one run, without loading its model."""
    run = results.open_run(folder)
    values, settings = results.experiment_values(run), results.settings(run)
    run.check(SCORES)
    scores = results.scores(run)
    tasks = [results.task_record(run, folder) for folder in run.learned()]
    return RunSummary(
        label=folder.resolve().name,
        method=settings.method.name,
        backbone=Path(settings.backbone.name).name,
        folder=folder.resolve(),
        examined=[_examined(task, settings.evaluation.limit) for task in tasks],
        tasks=[task.name for task in tasks],
        matrix=scores.matrix,
        samples={(i, s.task): s for i, row in enumerate(scores.samples) for s in row},
        metrics=scores.metrics,
        standard_errors=scores.standard_errors,
        dropped=results.dropped(run),
        settings=dict(flat({k: v for k, v in values.items() if k != "tasks"})),
        sections=read_sections(run),
        losses=read_losses(run),
        changes=read_changes(run),
        costs=results.costs(run),
        compaction=compaction_note(run),
    )


def _examined(task: TaskRecord, limit: int | None) -> Examined:
    counts = task.examples
    tested = counts.test if limit is None else min(limit, counts.test)
    return Examined(task.name, task.scorer, tested, counts.train, task.fingerprints.test)
