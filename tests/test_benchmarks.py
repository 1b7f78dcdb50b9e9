"""What the benchmarks compare computes the same thing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.alignment import alignment
from benchmarks.seekr_step import Bench
from benchmarks.shift import shifted
from retain import results
from retain.tasks import Example, Task
from tests.tiny import make_backbone, make_learner, make_task


def test_seekr_and_eager_attention_take_the_same_loss(tmp_path: Path) -> None:
    bench = Bench(tmp_path, width=64, length=120)
    bench.optimizer = torch.optim.SGD(bench.backbone.model.parameters(), lr=0.0)
    plain, seekr, eager = (bench.step(kind) for kind in ("plain", "seekr", "eager"))
    assert seekr == pytest.approx(eager, rel=1e-4)
    assert abs(seekr - plain) > 0.01


def test_alignment_is_the_divergence_of_what_evaluation_saw(tmp_path: Path) -> None:
    learner = make_learner("sapt", make_backbone("llama"), tmp_path / "run")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    (found,) = alignment(results.open_run(tmp_path / "run")).values()
    now = learner.answers([example.prompt for example in make_task("copy").test])
    # Right after the first task its block had all of the weight.
    expected = [-math.log(answer.routing["copy"]) for answer in now]
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@pytest.mark.parametrize("shift", ["noise", "reworded"])
def test_a_shift_changes_prompts_the_same_way_each_time(shift: str) -> None:
    rows = [
        Example(f"Classify the sentence number {i} of the given text", ("a",)) for i in range(9)
    ]
    task = Task("t", rows, rows, rows)
    first, again = shifted(task, shift), shifted(task, shift)
    assert first.test == again.test != rows
    assert [example.references for example in first.test] == [("a",)] * 9
    words = zip(rows[0].prompt.split(), first.test[0].prompt.split(), strict=True)
    assert sum(a != b for a, b in words) < 6
    assert shifted(task, "none").test == rows
