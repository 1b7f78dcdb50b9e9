"""The training losses of a run: one curve a part over all steps, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table
from rich.text import Text

from retain.report.layout import new_table
from retain.report.plots import Curve, curves
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import TRAINING, LogRow, read_records


@dataclass(frozen=True)
class PhaseLosses:
    """The losses of one phase of a task: the logged (step, value) by part.

    `steps` is how many the phase had.
    """

    task: str
    phase: str
    steps: int
    parts: dict[str, list[tuple[int, float]]]


def read_losses(run: RunDirectory) -> list[PhaseLosses]:
    """Reads the losses of all learned tasks' phases, in the order trained.

    Raises:
        RetainError: when a log is damaged.
    """
    phases: list[PhaseLosses] = []
    for folder in run.learned():
        if not results.holds(run, folder / TRAINING):
            continue
        name = results.task_record(run, folder).name
        rows = read_records(LogRow, folder / TRAINING)
        for phase in dict.fromkeys(row.phase for row in rows):
            logged = [row for row in rows if row.phase == phase]
            parts: dict[str, list[tuple[int, float]]] = {}
            for row in logged:
                for part, value in row.loss_parts.items():
                    parts.setdefault(part, []).append((row.step, value))
            phases.append(PhaseLosses(name, phase, logged[-1].step, parts))
    return phases


def losses_svg(phases: Sequence[PhaseLosses]) -> str:
    """One curve per part over the steps of the whole stream, broken between phases; log scale."""
    lines: dict[str, list[tuple[float, float]]] = {}
    starts: dict[int, str] = {}
    before = 0
    for phase in phases:
        if phase.task not in starts.values():
            starts[before] = phase.task
        for part, values in phase.parts.items():
            line = lines.setdefault(part, [])
            if line:
                line.append((float(before), float("nan")))
            line += [(before + step, value) for step, value in values]
        before += phase.steps
    return curves(
        [Curve(part, points) for part, points in lines.items()],
        "Training loss by part",
        "step; a dotted line starts a task",
        marks=[at for at in starts if at],
        scale="logarithmic",
    )


def losses_table(phases: Sequence[PhaseLosses]) -> Table:
    """Table of the mean over the first and the last tenth of the steps, by task, phase and part."""
    table = new_table("", ["phase", "part", "steps", "first tenth", "last tenth"])
    for phase in phases:
        for part, values in phase.parts.items():
            few = -(-len(values) // 10)
            first, last = (fmean(v for _, v in some) for some in (values[:few], values[-few:]))
            words = (Text(short(phase.task)), phase.phase, part, str(phase.steps))
            table.add_row(*words, f"{first:.3g}", f"{last:.3g}")
    return table
