"""Sparse routing, where a step has more blocks than it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retain.layers.pooled_linear import PooledLinear
from retain.learner.learner import Learner
from retain.testing.runs import KilledError, Record, content
from retain.testing.tiny import make_backbone, make_learner, make_task

NAMES = ("copy", "constant", "letter")
TASKS = [*map(make_task, NAMES), replace(make_task("copy"), name="again")]
"""With the fourth there are three frozen blocks, of which two are computed."""


def learned(folder: Path, kind: str = "llama", **training: bool) -> Learner:
    learner = make_learner("sapt-sparse", make_backbone(kind), folder, **training)
    for task in TASKS:
        learner.learn(task)
    return learner


def pooled(learner: Learner) -> dict[str, PooledLinear]:
    modules = learner.backbone.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, PooledLinear)}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_training_computes_the_chosen_blocks_only(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_graph: list[tuple[int, int]] = []
    largest = PooledLinear._largest

    def watched(self: PooledLinear, gates: Tensor, count: int) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            with_graph.append((gates.shape[1] // self.rank, count))
        return largest(self, gates, count)

    monkeypatch.setattr(PooledLinear, "_largest", watched)
    learner = learned(tmp_path / "run", kind)
    assert set(with_graph) == {(3, 2)}
    steps = learner.experiment.training.max_steps
    assert len(with_graph) == steps * len(pooled(learner))


def test_it_is_exact_under_gradient_checkpointing(tmp_path: Path) -> None:
    plain, saving = (
        pooled(learned(tmp_path / str(flag), gradient_checkpointing=flag)) for flag in (False, True)
    )
    for name, layer in plain.items():
        torch.testing.assert_close(saving[name].old_A, layer.old_A)
        torch.testing.assert_close(saving[name].old_B, layer.old_B)


def test_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    learned(tmp_path / "whole")
    record = Record()
    learner = make_learner("sapt-sparse", make_backbone("llama"), tmp_path / "run", record)
    for task in TASKS[:-1]:
        learner.learn(task)
    record.when = "2 again · learn".__eq__
    with pytest.raises(KilledError):
        learner.learn(TASKS[-1])
    Learner.load(tmp_path / "run", backbone=make_backbone("llama")).learn(TASKS[-1])
    assert content(tmp_path / "run") == content(tmp_path / "whole")
