"""Optimizers and warmups: what they compute, keep, and need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.system.files import read_jsonl, read_tensors
from retain.testing.runs import KilledError, Record
from retain.testing.tiny import TRAINING, make_backbone, make_task
from retain.training import optimizer
from retain.training.config import TrainingConfig

TASK = make_task("copy")
METHOD = {"name": "seqlora", "rank": 256}
"""Its tensors have 4,096 numbers and more; below that, moments are in 32 bits."""


def learner(folder: Path, **training: Any) -> Learner:
    settings = {**TRAINING, "max_steps": 4, "save_steps": 2, "warmup_steps": 0, **training}
    return Learner(make_backbone("llama"), METHOD, folder, training=settings)


def block(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "tasks/01-copy/adapter_model.safetensors")


def test_a_warmup_is_steps_or_a_share_of_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"warmup_steps \(2\) and warmup_ratio \(0.1\) both say"):
        TrainingConfig(warmup_steps=2, warmup_ratio=0.1)
    with pytest.raises(ValueError, match=r"warmup_ratio \(0.9\) is the number of all steps"):
        TrainingConfig(max_steps=2, warmup_ratio=0.9, lr_scheduler_type="polynomial")
    assert TrainingConfig(warmup_ratio=0.07).warmup(100) == 7
    assert TrainingConfig(warmup_ratio=0.03).warmup(10) == 1
    learner(tmp_path, warmup_ratio=0.5, learning_rate=0.02).learn(TASK)
    rows = read_jsonl(tmp_path / "tasks/01-copy/training.jsonl")
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 0.01, 0.02, 0.02])


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
def test_another_adamw_differs_by_rounding_and_resumes_to_the_same_bits(
    optim: str, tmp_path: Path
) -> None:
    if optim == "paged_adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="the extra quantization")
    for name in ("adamw_torch", optim):
        learner(tmp_path / name, optim=name).learn(TASK)
    plain, other = block(tmp_path / "adamw_torch"), block(tmp_path / optim)
    differences = [(other[name] - plain[name]).norm() / plain[name].norm() for name in plain]
    assert 0 < max(differences) < 0.1
    killed = learner(tmp_path / "killed", optim=optim)
    killed.progress = Record(lambda event: event.startswith("3 "))
    with pytest.raises(KilledError):
        killed.learn(TASK)
    Learner.load(tmp_path / "killed", backbone=make_backbone("llama")).learn(TASK)
    for name, tensor in block(tmp_path / "killed").items():
        assert torch.equal(tensor, other[name])


def test_an_optimizer_without_its_package_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "find_spec", lambda name: None)
    training = {"optim": "paged_adamw_8bit"}
    with pytest.raises(RetainError, match="optim: paged_adamw_8bit needs bitsandbytes; pip") as no:
        Learner("models/none", "seqlora", tmp_path / "run", training=training)
    assert "\n" not in str(no.value)
    assert list(tmp_path.iterdir()) == []
