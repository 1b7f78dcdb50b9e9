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
from retain.errors import RetainError
from retain.report.reader import flat
from retain.report.summary import METRIC_LABELS
from retain.report.tables import new_table
from retain.store import read_jsonl

SHORT = {
    "average_performance": "AP",
    "forgetting": "F.Ra",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
}
DRAWS = 4000
"""Resamplings for an interval."""


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        folder: where it is.
        method: its resolved options.
        pair: seed and order of tasks: what two runs share when they are compared.
        metrics: as in scores.json.
        examples: by task the newest score of each test example, 0 to 100.
        budget: what else two runs should share, by name.
    """

    folder: Path
    method: Mapping[str, Any]
    pair: tuple[Any, ...]
    metrics: Mapping[str, float | None]
    examples: Mapping[str, Tensor]
    budget: Mapping[str, Any]


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
        RetainError: when nothing has been scored in it.
    """
    run = results.open_run(folder)
    settings, scores = results.settings(run), results.scores(run)
    paths = results.newest_predictions(run)
    if not paths:
        raise RetainError(f"{folder}: nothing scored yet; finish the run first")
    examples = {
        name: torch.tensor([float(row["score"]) for row in read_jsonl(path)])
        for name, path in paths.items()
    }
    budget = {
        "backbone": settings["backbone"]["name"],
        "training": settings["training"],
        "test data and how it is scored": sorted(results.scored(run)),
    }
    pair = (settings["seed"], *scores["tasks"])
    return Entry(folder, settings["method"], pair, scores["metrics"], examples, budget)


def grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs of one method with the same options, by a label that tells these apart."""
    names = [str(entry.method["name"]) for entry in entries]
    groups: dict[str, list[Entry]] = {}
    for entry, name in zip(entries, names, strict=True):
        same = [dict(flat(e.method)) for e, n in zip(entries, names, strict=True) if n == name]
        own = dict(flat(entry.method))
        differing = [f"{k}={v}" for k, v in own.items() if any(o.get(k) != v for o in same)]
        groups.setdefault(" ".join([name, *differing]), []).append(entry)
    return groups


def warnings(entries: Sequence[Entry]) -> list[str]:
    """A line for each thing that runs should share and do not."""
    first = entries[0]
    return [
        f"{entry.folder}: another {what} than {first.folder}"
        for entry in entries[1:]
        for what in first.budget
        if entry.budget[what] != first.budget[what]
    ]


def difference(ours: Sequence[Entry], base: Sequence[Entry]) -> Difference | None:
    """Of AP, over pairs of runs with the same seed, order and test examples; None without any."""
    by_pair = {entry.pair: entry for entry in base}
    pairs = [(e, by_pair[e.pair]) for e in ours if e.pair in by_pair and _same_tests(e, by_pair)]
    if not pairs:
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


def _same_tests(entry: Entry, others: Mapping[tuple[Any, ...], Entry]) -> bool:
    other = others[entry.pair].examples
    return {n: len(s) for n, s in entry.examples.items()} == {n: len(s) for n, s in other.items()}


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
        return ("–", "no run of the same seed and order", "0")
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
            seed, *order = entry.pair
            values = (entry.metrics[key] for key in METRIC_LABELS)
            writer.writerow([entry.folder, label, seed, " > ".join(order), *values])
    return text.getvalue()
