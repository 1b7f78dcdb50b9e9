"""Diagnostics of pseudo-samples: how they compare with the training inputs they imitate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retain.methods.shared.pseudo_samples import QUALITY, Quality
from retain.metrics.continual import Drop
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import change_text, short
from retain.runs.sections import Grid, Section
from retain.system.files import read_jsonl

MEASURES = (
    "AUC is how well a classifier distinguishes pseudo-samples from training inputs: 0.5 not at "
    "all, 1 always. Distinct is the share of token pairs that do not repeat (distinct-2), in them "
    "and in as many training inputs. Copies are training inputs, or beginnings of them, word by "
    "word. Change is that of the task's score since it was learned, in points."
)


@dataclass(frozen=True)
class TaskSamples:
    """The pseudo-samples of one task.

    Attributes:
        task: the task's name.
        count: the number of pseudo-samples.
        quality: measures taken when they were generated; None for real inputs.
        lost: what the task's score has lost since it was learned; None if not measured.
    """

    task: str
    count: int
    quality: Quality | None
    lost: Drop | None


def read_samples(run: RunDirectory, file: str) -> list[TaskSamples]:
    """Reads the measures of a run's pseudo-samples, oldest task first.

    Args:
        run: an opened run.
        file: the name of the JSONL file with pseudo-samples in a task's folder.

    Raises:
        RetainError: when a file is damaged.
    """
    lost = [drops.since_learned for drops in results.dropped(run)]
    scored = len(results.rows(run))
    samples = []
    for i, folder in enumerate(run.learned()):
        if results.holds(run, folder / file):
            name = results.task_record(run, folder).name
            quality = results.read(run, folder / QUALITY, Quality)
            count = quality.count if quality else len(read_jsonl(folder / file))
            # The newest has lost nothing, if it is scored yet.
            drop = lost[i] if i < len(lost) else Drop(0.0) if i < scored else None
            samples.append(TaskSamples(name, count, quality, drop))
    return samples


def pseudo_sample_diagnostics(run: RunDirectory, file: str, real: bool = False) -> list[Section]:
    """Returns the section on a run's pseudo-samples; no section if it has none.

    Args:
        run: an opened run.
        file: as in `read_samples`.
        real: whether training inputs are kept instead of generated ones.
    """
    samples = read_samples(run, file)
    return [samples_section(samples, real)] if samples else []


def samples_section(samples: Sequence[TaskSamples], real: bool) -> Section:
    """Returns the section: a table with one row per task, and a sentence on privacy."""
    columns = ["texts", "AUC", "distinct", "of real", "repeats", "copies", "change"]
    rows = [(short(task.task), _cells(task)) for task in samples]
    return Section(
        "Pseudo-samples",
        [Grid("Pseudo-samples", columns, rows)],
        sentences=[_privacy_sentence(samples, real)],
        caption="" if real else MEASURES,
    )


def _cells(samples: TaskSamples) -> list[str]:
    change = change_text(samples.lost)
    quality = samples.quality
    if quality is None:
        return [str(samples.count), *["–"] * 5, change]
    shares = (quality.auc, quality.distinct_2, quality.real_distinct_2)
    return [
        str(samples.count),
        *("–" if share is None else f"{share:.2f}" for share in shares),
        str(quality.duplicates),
        str(quality.copies),
        change,
    ]


def _privacy_sentence(samples: Sequence[TaskSamples], real: bool) -> str:
    """Returns the sentence that pseudo-samples are to be treated as user data."""
    if real:
        origin = "they are training inputs"
    else:
        origin = "they imitate training inputs and may repeat them"
        if dropped := sum(task.quality.dropped for task in samples if task.quality):
            origin += f" in part ({dropped:,} copies were dropped)"
    return (
        f"Pseudo-samples: {sum(task.count for task in samples):,}; {origin}: "
        "this is user data, to be treated like the training data."
    )
