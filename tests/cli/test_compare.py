"""Runs side by side: groups, spread, paired differences, and what they ought to share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from retain.errors import RetainError
from retain.methods import METHODS
from retain.report.compare import (
    Entry,
    as_csv,
    as_html,
    difference,
    grouped,
    read_entry,
    tables,
    warnings,
    why_no_pair,
)
from retain.runs import results
from retain.testing.tiny import make_backbone, make_learner, make_task
from tests.command import call


def entry(
    name: str,
    seed: int,
    scores: Mapping[str, list[float]],
    train: Mapping[str, str] | None = None,
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
    learned = dict.fromkeys(scores, "all") | dict(train or {})
    return Entry(Path(f"{name}-{seed}"), name, settings, seed, tests, learned, metrics, examples)


def learned(method: str, folder: Path, examples: int = 12, **training: Any) -> Path:
    """A run on two tasks; of the first only so many examples are learned from.

    `training` is the second's own.
    """
    learner = make_learner(method, make_backbone("llama"), folder, max_steps=1)
    task = make_task("copy")
    learner.learn(replace(task, train=task.train[:examples]))
    learner.learn(replace(make_task("constant"), training=training))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the settings that a run keeps."""
    run = results.open_run(folder)
    values = results.experiment_values(run)
    change(values)
    run.write({folder / "config.yaml": yaml.safe_dump(values).encode()})
    return folder


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
    seed = entry("b", 1, {"x": [0], "y": [0]})
    order = entry("b", 0, {"y": [0], "x": [0]})
    tests = entry("b", 0, {"x": [0], "y": [0, 100]})
    both = entry("b", 1, {"y": [0], "x": [0]})
    no_predictions = replace(base[0], examples={})
    for other, why in (
        ([seed], "another seed"),
        ([order], "tasks learned in another order"),
        ([tests], "other tasks, test data or scoring"),
        ([both], "tasks learned in another order and another seed"),
        ([both, seed], "another seed"),
        ([no_predictions], "predictions are missing"),
    ):
        assert difference(other, base) is None
        assert why_no_pair(other, base) == f"no pair: {why}"
    assert "no pair: another seed" in shown([*base, seed])


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


def test_runs_of_other_streams_are_never_mixed() -> None:
    """The base has both streams, so that pairs of both would be found."""
    one, two = {"x": [0.0, 100.0]}, {"x": [0.0, 100.0, 100.0], "y": [0.0]}
    runs = [
        *(entry("a", seed, scores) for seed, scores in ((0, one), (1, two))),
        *(entry("b", seed, scores) for seed, scores in ((0, one), (1, two))),
    ]
    groups = list(grouped(runs).values())
    assert [[e.seed for e in group] for group in groups] == [[0], [1], [0], [1]]
    found = [difference(group, groups[0]) for group in groups[1:]]
    assert [each and each.pairs for each in found] == [None, 1, None]
    assert warnings(runs) == [
        "tests: other tasks, test data or scoring in a-1, b-1 than in a-0; left out of the "
        "differences"
    ]
    assert len({line.split()[1] for line in shown(runs).splitlines() if " tests=" in line}) == 2


def test_runs_in_other_orders_are_one_group() -> None:
    runs = [entry("a", 0, {"x": [0], "y": [0]}), entry("a", 0, {"y": [0], "x": [0]})]
    assert list(grouped(runs)) == ["a"]
    assert warnings(runs) == []


def test_runs_on_other_training_data_are_not_averaged() -> None:
    runs = [
        entry("a", 0, {"x": [0], "y": [0]}),
        entry("a", 1, {"x": [0], "y": [0]}, train={"y": "few"}),
        entry("b", 0, {"x": [0], "y": [0]}, train={"y": "few"}),
        entry("c", 0, {"x": [0], "y": [0]}, tasks__y__training__max_steps=3),
    ]
    labels = list(grouped(runs))
    assert [label.partition("=")[0] for label in labels] == ["a train", "a train", "b", "c"]
    assert labels[0] != labels[1]
    assert warnings(runs) == [
        "train: other examples of y in a-1, b-0 than in a-0",
        "tasks.y.training.max_steps: None in a-0, a-1, b-0; 3 in c-0",
    ]


def test_what_runs_do_not_share_is_said_once() -> None:
    runs = [
        entry("a", 0, {"x": [0]}, training__max_steps=1, rank=8),
        *(entry("b", seed, {"x": [0]}, training__max_steps=2, rank=4) for seed in range(5)),
    ]
    assert warnings(runs) == ["training.max_steps: 1 in a-0; 2 in b-0, b-1, b-2 and 2 more"]


def test_tables_say_which_way_is_better() -> None:
    runs = [
        entry("a", 0, {"x": [0]}, rank=8),
        entry("a", 0, {"x": [0]}, rank=4),
        entry("b", 0, {"x": [0, 0]}, training__max_steps=2),
    ]
    text = " ".join(shown(runs).split())
    assert "F.Ra: points lost since the best (lower is better)" in text
    assert text.count("rank=8") == 1  # of the base: its row, and no title
    assert "Difference in AP from a (the first run's method)" in text
    assert "– until retain report RUN --single PERTASK_RUN has been given one." in text
    page = as_html(runs)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "<title>retain compare</title>" in page
    assert "color-scheme: light dark" in page
    assert "color: #" not in page
    assert all(f"warning: {line}" in " ".join(page.split()) for line in warnings(runs))


def test_a_setting_of_a_later_version_has_its_default(tmp_path: Path) -> None:
    def earlier(values: dict[str, Any]) -> None:
        del values["evaluation"]["zero_shot"], values["method"]["target_modules"]
        del values["training"]["bf16"]
        values["seed"] = 1

    def other(values: dict[str, Any]) -> None:
        values["evaluation"]["zero_shot"] = True
        values["training"]["logging_steps"] = 7
        values["seed"] = 2

    folders = [
        learned("seqlora", tmp_path / "a"),
        rewrite(learned("seqlora", tmp_path / "b"), earlier),
        rewrite(learned("seqlora", tmp_path / "c"), other),
    ]
    entries = [read_entry(folder) for folder in folders]
    assert {label: len(group) for label, group in grouped(entries).items()} == {"seqlora": 3}
    assert warnings(entries) == []


def test_runs_of_a_method_of_ones_own_are_read(tmp_path: Path) -> None:
    def own(values: dict[str, Any]) -> None:
        values["method"] = {"name": "pulled", "pull": 0.5}

    found = read_entry(rewrite(learned("seqlora", tmp_path / "a"), own))
    assert (found.method, found.options["pull"]) == ("pulled", 0.5)


def test_what_real_runs_learned_from(tmp_path: Path) -> None:
    base = learned("seqlora", tmp_path / "base")
    few = learned("seqlora", tmp_path / "few", examples=6)
    longer = learned("seqlora", tmp_path / "longer", max_steps=2)
    entries = [read_entry(folder) for folder in (base, few, longer)]
    assert len(grouped(entries)) == 3
    assert warnings(entries) == [
        f"train: other examples of copy in {few} than in {base}",
        f"tasks.constant.training.max_steps: None in {base}, {few}; 2 in {longer}",
    ]
    done = call("compare", base, few, longer)
    assert done.status == 0
    assert done.err.splitlines() == [f"warning: {line}" for line in warnings(entries)]


def test_runs_with_answers_of_other_lengths_are_not_averaged(tmp_path: Path) -> None:
    for name, length in (("a", None), ("b", 9)):
        learner = make_learner("seqlora", make_backbone("llama"), tmp_path / name, max_steps=1)
        learner.learn(replace(make_task("copy"), max_new_tokens=length))
    entries = [read_entry(tmp_path / name) for name in ("a", "b")]
    assert list(grouped(entries)) == [
        "seqlora tasks.copy.max_new_tokens=None",
        "seqlora tasks.copy.max_new_tokens=9",
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


def test_retain_s_own_options_are_named_below() -> None:
    """A method's row must not pass for its paper's."""
    runs = [entry("sapt", seed, {"x": [0]}, preset="default") for seed in (0, 1)]
    assert "`sapt` is not as published, in router.kind, router.centre, router.key" in shown(runs)
    options = METHODS["sapt"].Config(preset="paper").model_dump(mode="json")
    assert "as published" not in shown([entry("sapt", 0, {"x": [0]}, **options)])
