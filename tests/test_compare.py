"""Runs side by side: groups, spread, paired differences, and what they ought to share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from retain.errors import RetainError
from retain.report.compare import (
    Entry,
    as_csv,
    as_html,
    difference,
    grouped,
    read_entry,
    tables,
    warnings,
)
from tests.tiny import make_backbone, make_learner, make_task


def entry(
    name: str,
    seed: int,
    scores: Mapping[str, list[float]],
    **options: Any,
) -> Entry:
    examples = {task: torch.tensor(values, dtype=torch.float32) for task, values in scores.items()}
    average = float(torch.stack([e.mean() for e in examples.values()]).mean())
    metrics = {
        "average_performance": average,
        "forgetting": None,
        "backward_transfer": 1.0,
        "forward_transfer": None,
    }
    settings = {key.replace("__", "."): value for key, value in options.items()}
    tests = tuple((task, str(len(values))) for task, values in scores.items())
    return Entry(Path(f"{name}-{seed}"), name, settings, seed, tests, metrics, examples)


def shown(entries: list[Entry]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tables(entries))
    return captured.get()


def test_spread_over_seeds_and_a_paired_difference() -> None:
    base = [entry("a", s, {"x": [0, 100], "y": [0, 0, 0, 100]}) for s in (0, 1)]
    ours = [
        entry("b", 0, {"x": [100, 100], "y": [0, 0, 0, 100]}),
        entry("b", 1, {"x": [0, 100], "y": [100, 0, 0, 100]}),
        entry("b", 2, {"x": [0, 0], "y": [0, 0, 0, 0]}),  # no partner
    ]
    found = difference(ours, base)
    assert found is not None
    # x gains 50 with seed 0, y gains 25 with seed 1: each half over two seeds, then over two tasks.
    assert found.mean == pytest.approx((25 + 12.5) / 2)
    assert found.low < found.mean < found.high
    assert found.pairs == 2
    text = shown([*base, *ours])
    assert "37.5 ± 0.0" in text
    assert "+18.8" in text


def test_equal_runs_differ_by_nothing() -> None:
    runs = [entry(name, 0, {"x": [0, 100, 100]}) for name in ("a", "b")]
    found = difference(runs[1:], runs[:1])
    assert found is not None
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_without_a_common_seed_order_or_test_set_there_is_no_difference() -> None:
    base = [entry("a", 0, {"x": [0], "y": [0]})]
    assert difference([entry("b", 1, {"x": [0], "y": [0]})], base) is None
    assert difference([entry("b", 0, {"y": [0], "x": [0]})], base) is None
    assert difference([entry("b", 0, {"x": [0], "y": [0, 100]})], base) is None


def test_other_options_make_another_group_that_says_which() -> None:
    runs = [
        entry("a", 0, {"x": [0]}, router__rate=0.1, rank=8),
        entry("a", 1, {"x": [0]}, router__rate=1.0, rank=8),
        entry("b", 0, {"x": [0]}),
    ]
    assert list(grouped(runs)) == ["a router.rate=0.1", "a router.rate=1.0", "b"]


def test_a_run_counts_once() -> None:
    """A pair of the same seed and order would be compared with one of two."""
    with pytest.raises(RetainError, match="same method, options, seed and order as a-0"):
        grouped([entry("a", 0, {"x": [0]}), entry("a", 0, {"x": [100]})])


def test_what_runs_do_not_share_is_said() -> None:
    runs = [
        entry("a", 0, {"x": [0]}, training__max_steps=1, rank=8),
        entry("b", 0, {"x": [0, 0]}, training__max_steps=2, rank=4),
    ]
    assert warnings(runs) == [
        "b-0: other tasks or test data than a-0",
        "b-0: training.max_steps is 2, and 1 in a-0",
    ]


def test_of_real_runs(tmp_path: Path) -> None:
    folders = []
    for method in ("seqlora", "pertask"):  # the second decodes a task once
        learner = make_learner(method, make_backbone("llama"), tmp_path / method, max_steps=1)
        for name in ("copy", "constant"):
            learner.learn(make_task(name))
        folders.append(tmp_path / method)
    entries = [read_entry(folder) for folder in folders]
    assert warnings(entries) == []
    for one in entries:
        average = torch.stack([scores.mean() for scores in one.examples.values()]).mean()
        assert one.metrics["average_performance"] == pytest.approx(float(average), abs=1e-3)
    lines = as_csv(entries).splitlines()
    assert [line.split(",")[1:4] for line in lines[1:]] == [
        ["seqlora", "0", "copy > constant"],
        ["pertask", "0", "copy > constant"],
    ]
    assert "pertask" in as_html(entries)
