"""Methods side by side over seeds and orders: means with their spread, and paired differences."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.text import Text
from torch import Tensor

from retain import results
from retain.config import FREE
from retain.errors import RetainError
from retain.records import Prediction, read_records
from retain.report.reader import flat
from retain.report.summary import METRIC_LABELS
from retain.report.tables import new_table

SHORT = {
    "average_performance": "AP",
    "forgetting": "F.Ra",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
}
PARTS = ("training", "backbone", "prompt", "evaluation")
"""Settings beside the method's own that runs should share."""
DRAWS = 4000
"""Resamplings for an interval."""


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        folder: where it is.
        method: its name.
        options: those of the method, and the settings of training, backbone, prompt and evaluation,
            as `a.b` and value: runs of one method that differ in one are not averaged.
        seed: the run's.
        tests: of each task in order its name, test data, and how they are scored.
        metrics: as in scores.json.
        examples: by task the newest score of each test example, 0 to 100.
    """

    folder: Path
    method: str
    options: Mapping[str, Any]
    seed: int
    tests: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, float | None]
    examples: Mapping[str, Tensor]

    @property
    def pair(self) -> tuple[Any, ...]:
        """What two runs share when they are compared: seed, order of tasks, test data."""
        return (self.seed, self.tests)


@dataclass(frozen=True)
class Difference:
    """What a method's AP is above another's, over the pairs of runs with the same seed and order.

    Attributes:
        mean: in points.
        low, high: 95 % interval, from resampling the test examples of each task (paired bootstrap).
            It knows nothing of other seeds than those that ran.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int


def read_entry(folder: Path) -> Entry:
    """Reads a finished run, without its model.

    Raises:
        RetainError: when its newest task has not been scored.
    """
    run = results.open_run(folder)
    settings, scores = results.settings(run), results.final_scores(run)
    examples = {
        name: torch.tensor([float(row["score"]) for row in read_records(Prediction, path)])
        for name, path in results.newest_predictions(run).items()
    }
    for part, field in FREE:
        settings[part].pop(field, None)
    method = settings["method"].pop("name")
    shared = {part: settings[part] for part in PARTS}
    options = dict(flat({**settings["method"], **shared}))
    tests = tuple(results.scored(run))
    return Entry(folder, method, options, settings["seed"], tests, scores["metrics"], examples)


def grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs of one method with the same options, by a label that tells these apart.

    Raises:
        RetainError: when two of them have the same seed and order.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        same = [other.options for other in entries if other.method == entry.method]
        differing = [
            f"{key}={value}"
            for key, value in entry.options.items()
            if any(options.get(key) != value for options in same)
        ]
        group = groups.setdefault(" ".join([entry.method, *differing]), [])
        for other in group:
            if other.pair == entry.pair:
                raise RetainError(
                    f"{entry.folder}: same method, options, seed and order as {other.folder}; "
                    "leave one of them out"
                )
        group.append(entry)
    return groups


def warnings(entries: Sequence[Entry]) -> list[str]:
    """A line for each thing that runs of different methods should share and do not."""
    first, lines = entries[0], []
    for entry in entries[1:]:
        if sorted(entry.tests) != sorted(first.tests):
            lines.append(f"{entry.folder}: other tasks or test data than {first.folder}")
        for key, value in entry.options.items():
            ours = first.options.get(key)
            if key.split(".")[0] in PARTS and value != ours:
                lines.append(f"{entry.folder}: {key} is {value}, and {ours} in {first.folder}")
    return lines


def difference(ours: Sequence[Entry], base: Sequence[Entry]) -> Difference | None:
    """Of AP, over pairs of runs with the same seed, order and test examples; None without any."""
    by_pair = {entry.pair: entry for entry in base}
    pairs = [(entry, by_pair[entry.pair]) for entry in ours if entry.pair in by_pair]
    if not pairs or any(not entry.examples for pair in pairs for entry in pair):
        return None
    generator = torch.Generator().manual_seed(0)
    means, draws = [], []
    for task in pairs[0][0].examples:
        gain = torch.stack([a.examples[task] - b.examples[task] for a, b in pairs]).mean(0)
        index = torch.randint(len(gain), (DRAWS, len(gain)), generator=generator)
        means.append(gain.mean())
        draws.append(gain[index].mean(1))
    low, high = torch.stack(draws).mean(0).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Difference(float(torch.stack(means).mean()), low, high, len(pairs))


def tables(entries: Sequence[Entry]) -> RenderableType:
    """Mean ± standard deviation of each metric by method, and AP against the first method."""
    groups = grouped(entries)
    scores = new_table("Mean ± sd over runs", ["runs", *SHORT.values()])
    for label, group in groups.items():
        scores.add_row(Text(label), str(len(group)), *(_spread(group, key) for key in SHORT))
    (first, base), *others = groups.items()
    if not others:
        return scores
    against = new_table(f"AP above {first}", ["points", "95 % interval", "pairs"])
    for label, group in others:
        found = difference(group, base)
        against.add_row(Text(label), *_cells(found))
    note = Text("Intervals: paired bootstrap over test examples; other seeds may differ by more.")
    return Group(scores, against, note)


def _cells(found: Difference | None) -> tuple[str, str, str]:
    if found is None:
        return ("–", "no pair to compare", "0")
    return (f"{found.mean:+.1f}", f"{found.low:+.1f} to {found.high:+.1f}", str(found.pairs))


def _spread(group: Sequence[Entry], key: str) -> str:
    known = [value for entry in group if (value := entry.metrics[key]) is not None]
    if not known:
        return "–"
    return f"{fmean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def as_html(entries: Sequence[Entry]) -> str:
    """The tables as one page."""
    page = Console(record=True, file=io.StringIO(), width=110)
    page.print(tables(entries))
    return page.export_html()


def as_csv(entries: Sequence[Entry]) -> str:
    """A line a run: folder, method, seed, order, metrics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "method", "seed", "order", *METRIC_LABELS])
    for label, group in grouped(entries).items():
        for entry in group:
            order = " > ".join(test[0] for test in entry.tests)
            values = (entry.metrics[key] for key in METRIC_LABELS)
            writer.writerow([entry.folder, label, entry.seed, order, *values])
    return text.getvalue()
