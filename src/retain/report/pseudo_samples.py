"""The pseudo-samples of a run: how they compare with the training inputs that they imitate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from retain.metrics.continual import points_lost
from retain.report.layout import change_text, new_table, short
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import PSEUDO, QUALITY, Quality
from retain.system.files import read_jsonl

WORDS = (
    "AUC is how well a classifier tells pseudo-samples from training inputs: 0.5 not at all, 1 "
    "always. Distinct is the share of token pairs that do not repeat (distinct-2), in them and in "
    "as many training inputs. Copies are training inputs, or beginnings of them, word by word. "
    "Change is that of the task's score since it was learned, in points."
)


@dataclass(frozen=True)
class TaskSamples:
    """The pseudo-samples of one task.

    `quality` holds what was measured of them when they were written, as in the run's quality.json;
    it is empty for real inputs, and in runs of an earlier version. `lost` is what the task's score
    has lost since it was learned, in points.
    """

    task: str
    count: int
    quality: Mapping[str, float | None]
    lost: float | None


@dataclass(frozen=True)
class Samples:
    """All of a run's, oldest task first; `real` says that they are training inputs themselves."""

    tasks: list[TaskSamples]
    real: bool


def read_samples(run: RunDirectory) -> Samples | None:
    """What a run says about its pseudo-samples; None for a method that keeps none.

    Raises:
        RetainError: when one of these files is damaged.
    """
    lost = points_lost(results.scores(run).matrix)
    found = []
    for i, folder in enumerate(run.learned()):
        kept = results.holds(run, folder / PSEUDO)
        quality = results.read(run, folder / QUALITY, Quality)
        if quality:
            count = quality.count
        elif kept:
            count = len(read_jsonl(folder / PSEUDO))
        else:
            continue
        name = results.task_record(run, folder).name
        found.append(
            TaskSamples(
                name,
                count,
                quality.model_dump() if quality else {},
                lost[i] if i < len(lost) else None,
            )
        )
    method = results.experiment_values(run)["method"]
    real = method.get("reflection", {}).get("samples") == "real"
    return Samples(found, real) if found else None


def samples_table(samples: Samples) -> Table:
    """A row a task: what its pseudo-samples are worth, and how the task's score changed since."""
    columns = ["texts", "AUC", "distinct", "of real", "repeats", "copies", "change"]
    table = new_table("Pseudo-samples", columns)
    for own in samples.tasks:
        shares = [_number(own.quality.get(key), 2) for key in ("auc", "distinct_2")]
        shares.append(_number(own.quality.get("real_distinct_2"), 2))
        counts = [_number(own.quality.get(key), 0) for key in ("duplicates", "copies")]
        change = change_text(None if own.lost is None else -own.lost)
        table.add_row(Text(short(own.task)), str(own.count), *shares, *counts, change)
    return table


def privacy_sentence(samples: Samples) -> str:
    """That pseudo-samples hold people's data."""
    count = sum(own.count for own in samples.tasks)
    if samples.real:
        what = "they are training inputs"
    else:
        what = "they imitate training inputs and may repeat them"
        if dropped := sum(int(own.quality.get("dropped") or 0) for own in samples.tasks):
            what += f" in part ({dropped:,} copies were dropped)"
    return (
        f"Pseudo-samples: {count:,}; {what}: "
        "this is user data, to be treated like the training data."
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
