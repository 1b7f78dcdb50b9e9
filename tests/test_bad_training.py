"""A step whose loss or gradient is not a number changes nothing, and is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retain.backbone import Batch
from retain.errors import RetainError
from retain.learner import Learner
from tests.tiny import make_backbone, make_learner, make_task

FIRST = make_task("copy")


def learner_with(
    spoil: Callable[[dict[str, Tensor], Learner], dict[str, Tensor]], folder: Path
) -> Learner:
    """Its loss is spoiled from the third step on."""
    learner = make_learner("seqlora", make_backbone("llama"), folder)
    loss, calls = learner.method._loss, []

    def spoiled(batch: Batch) -> dict[str, Tensor]:
        calls.append(batch)
        parts = loss(batch)
        return spoil(parts, learner) if len(calls) >= 3 else parts

    learner.method._loss = spoiled
    return learner


def not_a_number(parts: dict[str, Tensor], learner: Learner) -> dict[str, Tensor]:
    return {"task": parts["task"] * float("nan")}


def infinite_slope(parts: dict[str, Tensor], learner: Learner) -> dict[str, Tensor]:
    weights = next(iter(learner.method.weights.named_parameters().values()))
    return {"task": parts["task"] + (0.0 * weights).abs().sum().sqrt()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(not_a_number, "the loss 'task' is nan"), (infinite_slope, "the gradient's norm is nan")],
)
def test_it_stops_before_the_step(
    spoil: Callable[[dict[str, Tensor], Learner], dict[str, Tensor]], says: str, tmp_path: Path
) -> None:
    learner = learner_with(spoil, tmp_path / "run")
    with pytest.raises(RetainError) as caught:
        learner.learn(FIRST)
    message = str(caught.value)
    assert f"phase 'learn', step 3: {says}, on 'copy this word: " in message
    assert "and 3 more; the last good state is step 2; start again in another" in message
    named = message.partition(" on ")[2].partition(" and 3 more")[0].split(", ")
    prompts = {example.prompt for example in FIRST.train}
    assert {name.strip("'") for name in named} <= prompts
    for parameter in learner.backbone.model.parameters():
        assert torch.isfinite(parameter).all()
    # The state of the second step is on disk, whole.
    fresh = make_learner("seqlora", make_backbone("llama"), tmp_path / "again")
    whole = fresh.learn(FIRST)
    resumed = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    assert resumed.learn(FIRST) == whole


@pytest.mark.parametrize(
    ("error", "settings", "says"),
    [
        (torch.OutOfMemoryError("x"), {}, "go on with --resume --set training.gradient_checkp"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"),
            {},
            "at 6 rows a batch; go",
        ),
        (MemoryError(), {"gradient_checkpointing": True}, "per_device_train_batch_size under 6"),
    ],
)
def test_out_of_memory_says_what_to_change(
    error: Exception, settings: dict[str, bool], says: str, tmp_path: Path
) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", **settings)

    def fails(batch: Batch) -> dict[str, Tensor]:
        raise error

    learner.method._loss = fails
    with pytest.raises(RetainError, match="training: out of memory") as caught:
        learner.learn(FIRST)
    assert says in str(caught.value)


def test_another_runtime_error_is_not_one_of_memory(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run")

    def fails(batch: Batch) -> dict[str, Tensor]:
        raise RuntimeError("a bug")

    learner.method._loss = fails
    with pytest.raises(RuntimeError, match="a bug"):
        learner.learn(FIRST)
