"""A step in several micro-batches is the step on one batch of all their rows, in every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retain.tasks import Task
from retain.testing.tiny import VARIANTS, make_backbone, make_learner, make_task

FAST = ("sapt", "seekr", "amlora", "ewc", "olora", "l2p", "derpp")
"""Methods that together have every kind of loss term."""


def uneven(name: str) -> Task:
    """Makes answers of different lengths, so that a wrong mean over micro-batches shows."""
    task = make_task(name)
    train = [
        replace(e, references=(e.references[0] * (1 + i % 3),)) for i, e in enumerate(task.train)
    ]
    return replace(task, train=train)


def learned(variant: str, folder: Path, size: int, accumulation: int) -> dict[str, Tensor]:
    """Returns all tensors of a model that has learned two tasks, without dropout."""
    backbone = make_backbone("llama")
    learner = make_learner(
        variant,
        backbone,
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        save_steps=100,
    )
    for module in backbone.model.modules():
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    for name in ("copy", "constant"):
        learner.learn(uneven(name))
    model = learner.backbone.model
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}


BY_MICRO_BATCH = ("ewc-trace",)
"""Those whose loss is of micro-batches as they are: it squares the gradient of each."""


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=() if v in FAST else pytest.mark.slow)
        for v in VARIANTS
        if v not in BY_MICRO_BATCH
    ],
)
def test_micro_batches_make_the_same_step(variant: str, tmp_path: Path) -> None:
    whole = learned(variant, tmp_path / "whole", 6, 1)
    parts = learned(variant, tmp_path / "parts", 3, 2)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
