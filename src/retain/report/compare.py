"""Comparison of methods over seeds and task orders: means, spread, paired differences."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor

from retain.errors import RetainError
from retain.experiment.config import FREE, ExperimentConfig, resolved
from retain.experiment.validation import check
from retain.methods import find
from retain.methods.base import filled_in, flat
from retain.report.layout import new_table
from retain.report.summary import (
    METRIC_LABELS,
    NO_AVERAGE,
    NO_FORWARD_TRANSFER,
    not_as_published,
)
from retain.runs import results
from retain.runs.records import CONFIG, Prediction, read_records
from retain.system.printing import PlainConsole, csv_text

PARTS = ("training", "backbone", "prompt", "evaluation")
"""Parts of the experiment, beside the method, whose settings runs should share."""
IRRELEVANT = (*FREE, ("evaluation", "zero_shot"), ("training", "logging_steps"))
"""Settings that change no number that is compared."""
DRAWS = 4000
"""Resamplings of the test examples for an interval."""
SHOWN = 3
"""How many runs a warning names."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>retain compare</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 60rem; font-family: system-ui, sans-serif; }}
pre {{ overflow-x: auto; font-family: ui-monospace, Menlo, Consolas, monospace; }}
{stylesheet}
</style>
</head>
<body>
<h1>retain compare</h1>
<pre>{code}</pre>
</body>
</html>
"""
"""The page around the tables of rich; it sets no colours, so the reader's theme applies."""


@dataclass(frozen=True)
class Entry:
    """A run that is compared.

    Attributes:
        folder: where it is.
        method: its name.
        options: the method's options, the settings of training, backbone, prompt and evaluation,
            and each task's own, as `a.b` and value; missing ones have their default.
        seed: the run's.
        tests: of each task in order its name, test data, how they are scored, and which of them
            the newest score is of.
        learned: by task the fingerprints of its training and development examples.
        metrics: as in scores.json.
        examples: by task the newest scores of its N test examples, (N,), 0 to 100.
        standard_errors: of the metrics that rest on samples of test examples (`evaluation.old`).
    """

    folder: Path
    method: str
    options: Mapping[str, Any]
    seed: int
    tests: tuple[tuple[str, ...], ...]
    learned: Mapping[str, str]
    metrics: Mapping[str, float | None]
    examples: Mapping[str, Tensor]
    standard_errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[Any, ...]:
        """Key that two runs share when they are paired: seed, order of tasks, test data."""
        return (self.seed, self.tests)

    @property
    def shared(self) -> dict[str, Any]:
        """Values that runs of one method share when averaged: all but seed and order of tasks."""
        tests = _digest(sorted(test[:3] for test in self.tests))  # the rest is among the options
        return {**self.options, "tests": tests, "train": _digest(sorted(self.learned.items()))}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Difference:
    """Difference in AP between two methods, over pairs of runs with the same seed and order.

    Attributes:
        mean: in points; positive where the first method's AP is higher.
        low, high: 95 % interval, from resampling the test examples of each task (paired bootstrap).
            It covers the seeds that ran only; other seeds may differ by more.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int


def read_entry(folder: Path) -> Entry:
    """Reads a finished run without loading its model.

    Raises:
        RetainError: when its newest task has not been scored.
    """
    run = results.open_run(folder)
    values, scores = results.experiment_values(run), results.final_scores(run)
    predictions = {
        name: read_records(Prediction, path)
        for name, path in results.newest_predictions(run).items()
    }
    examples = {n: torch.tensor([row.score for row in rows]) for n, rows in predictions.items()}
    filled = _filled(values, folder)
    for part, name in IRRELEVANT:
        filled[part].pop(name, None)
    method = filled["method"].pop("name")
    tasks = [results.task_record(run, place) for place in run.learned()]
    by_task = {
        task.name: {"training": task.training, "max_new_tokens": task.max_new_tokens}
        for task in tasks
    }
    options = dict(flat({**filled.pop("method"), **filled, "tasks": by_task}))
    learned = {task.name: task.fingerprints.train + task.fingerprints.dev for task in tasks}
    tests = tuple(
        (*key, _asked(predictions.get(key[0], ()))) for key in results.comparable_keys(run)
    )
    return Entry(
        folder,
        method,
        options,
        values["seed"],
        tests,
        learned,
        scores.metrics,
        examples,
        scores.standard_errors,
    )


def _asked(predictions: Sequence[Prediction]) -> str:
    """Which test examples were asked, where that is a sample: two runs need the same."""
    places = [row.example for row in predictions if row.example is not None]
    return _digest(places) if places else ""


def _filled(settings: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The method's options and the settings of `PARTS`, with defaults for missing ones."""
    name = settings["method"]["name"]
    values = {"backbone": settings["backbone"]["name"], "method": name}
    blank = check(ExperimentConfig, values, str(folder / CONFIG))
    if find(name):  # the options of others stay as they are
        blank = resolved(blank)
    defaults = blank.model_dump(mode="json")
    return {part: filled_in(settings[part], defaults[part]) for part in ("method", *PARTS)}


def grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Groups runs of one method with the same options and data, under a label that says which.

    Raises:
        RetainError: when two runs of a group have the same seed and order.
    """
    groups: dict[str, list[Entry]] = {}
    shared = [(entry, entry.shared) for entry in entries]
    for entry, ours in shared:
        same = [other for of, other in shared if of.method == entry.method]
        differing = [
            f"{key}={ours.get(key)}"
            for key in dict.fromkeys(key for other in same for key in other)
            if any(other.get(key) != ours.get(key) for other in same)
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
    """Returns a line for each setting or data set that runs should share and do not."""
    return list(_warnings(entries))


def _warnings(entries: Sequence[Entry]) -> Iterator[str]:
    first = entries[0]
    others = [entry for entry in entries if set(entry.tests) != set(first.tests)]
    if others:
        yield (
            f"tests: other tasks, test data or scoring in {_folders(others)} than in "
            f"{first.folder}; left out of the differences"
        )
    known = first.learned
    names = dict.fromkeys(
        name
        for entry in entries
        for name, examples in entry.learned.items()
        if examples != known.get(name, examples)
    )
    others = [e for e in entries if any(e.learned.get(n, known[n]) != known[n] for n in names)]
    if others:
        yield (
            f"train: other examples of {', '.join(names)} in {_folders(others)} than in "
            f"{first.folder}"
        )
    for key in dict.fromkeys(key for entry in entries for key in entry.options):
        values: list[Any] = []
        for entry in entries:
            if (value := entry.options.get(key)) not in values:
                values.append(value)
        if key.split(".")[0] in (*PARTS, "tasks") and len(values) > 1:
            yield f"{key}: " + "; ".join(
                f"{value} in {_folders([e for e in entries if e.options.get(key) == value])}"
                for value in values
            )


def _folders(entries: Sequence[Entry]) -> str:
    """The first `SHOWN` folders, and how many more there are."""
    more = len(entries) - SHOWN
    named = ", ".join(str(entry.folder) for entry in entries[:SHOWN])
    return f"{named} and {more} more" if more > 0 else named


def difference(ours: Sequence[Entry], base: Sequence[Entry]) -> Difference | None:
    """Difference in AP of a group from a base group; None without a pair of runs.

    Args:
        ours: a group of `grouped`, whose runs have the same tests.
        base: another one.

    Returns:
        The mean over pairs of runs and over tasks, with a bootstrap interval: in each of `DRAWS`
        draws every task's test examples are resampled with replacement, the same ones for both
        runs of every pair.
    """
    by_pair = {entry.pair: entry for entry in base}
    pairs = [(entry, by_pair[entry.pair]) for entry in ours if entry.pair in by_pair]
    # A multitask run has no predictions until its last task has come.
    if not pairs or any(len(e.examples) < len(e.tests) for pair in pairs for e in pair):
        return None
    generator = torch.Generator().manual_seed(0)
    means, draws = [], []
    for task in pairs[0][0].examples:
        gains = torch.stack([a.examples[task] - b.examples[task] for a, b in pairs])  # (pairs, N)
        gain = gains.mean(0)  # (N,), of each test example
        chosen = torch.randint(len(gain), (DRAWS, len(gain)), generator=generator)  # (DRAWS, N)
        means.append(gain.mean())
        draws.append(gain[chosen].mean(1))  # (DRAWS,)
    resampled = torch.stack(draws).mean(0)  # (tasks, DRAWS) -> (DRAWS,)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Difference(float(torch.stack(means).mean()), low, high, len(pairs))


def why_no_pair(ours: Sequence[Entry], base: Sequence[Entry]) -> str:
    """Why no two runs are a pair, for those that share most; where `difference` is None."""
    reasons = []
    for a, b in product(ours, base):
        tests = set(a.tests) == set(b.tests)
        reasons.append(
            [
                *(["other tasks, test data or scoring"] if not tests else []),
                *(["tasks learned in another order"] if tests and a.tests != b.tests else []),
                *(["another seed"] if a.seed != b.seed else []),
            ]
        )
    fewest = min(reasons, key=len)
    return f"no pair: {' and '.join(fewest) or 'predictions are missing'}"


def tables(entries: Sequence[Entry]) -> RenderableType:
    """Tables of mean ± standard deviation of each metric, and of AP against the first method."""
    groups = grouped(entries)
    heads = [words.partition(":")[0] for words in METRIC_LABELS.values()]
    scores = new_table("Mean ± sd over runs", ["runs", *heads])
    for label, group in groups.items():
        scores.add_row(
            Text(label), str(len(group)), *(_spread(group, key) for key in METRIC_LABELS)
        )
    legend = Text("; ".join(METRIC_LABELS.values()) + ".")
    if any(entry.metrics["forward_transfer"] is None for entry in entries):
        legend.append(f"\n{NO_FORWARD_TRANSFER}")
    if any(entry.metrics["average_performance"] is None for entry in entries):
        legend.append(f"\n{NO_AVERAGE}")
    for label, group in groups.items():
        if published := not_as_published(label, group[0].method, group[0].options):
            legend.append(f"\n{published}.")
    for key, words in METRIC_LABELS.items():
        if sampled := [entry for entry in entries if key in entry.standard_errors]:
            largest = max(entry.standard_errors[key] for entry in sampled)
            legend.append(
                f"\n{words.partition(':')[0]} of {_folders(sampled)} rests on samples of test "
                f"examples (evaluation.old), with a standard error of up to {largest:.1f}."
            )
    base, *others = groups.values()
    if not others:
        return Group(scores, legend)
    title = f"Difference in AP from {base[0].method} (the first run's method)"
    against = new_table(title, ["points", "95 % interval", "pairs"])
    for label, group in list(groups.items())[1:]:
        against.add_row(Text(label), *_cells(group, base))
    note = Text("Intervals: paired bootstrap over test examples; other seeds may differ by more.")
    return Group(scores, legend, Text(), against, note)


def _cells(group: Sequence[Entry], base: Sequence[Entry]) -> tuple[str, str, str]:
    gain = difference(group, base)
    if gain is None:
        return ("–", why_no_pair(group, base), "0")
    return (f"{gain.mean:+.1f}", f"{gain.low:+.1f} to {gain.high:+.1f}", str(gain.pairs))


def _spread(group: Sequence[Entry], key: str) -> str:
    known = [value for entry in group if (value := entry.metrics[key]) is not None]
    if not known:
        return "–"
    return f"{fmean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def as_html(entries: Sequence[Entry]) -> str:
    """Warnings and tables as one HTML page."""
    page = PlainConsole(record=True, file=io.StringIO(), width=110)
    for line in warnings(entries):
        page.print(Text(f"warning: {line}"))
    page.print(tables(entries))
    return page.export_html(code_format=PAGE)


def as_csv(entries: Sequence[Entry]) -> str:
    """CSV with one row per run: folder, method, seed, order, metrics."""
    rows: list[list[Any]] = [["run", "method", "seed", "order", *METRIC_LABELS]]
    for label, group in grouped(entries).items():
        for entry in group:
            order = " > ".join(test[0] for test in entry.tests)
            values = (entry.metrics[key] for key in METRIC_LABELS)
            rows.append([entry.folder, label, entry.seed, order, *values])
    return csv_text(rows)
