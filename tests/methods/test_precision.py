"""What users run for speed: bfloat16, by the backbone or by autocast, and torch.compile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retain.backbone import Backbone, BackboneConfig
from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, resolved
from retain.experiment.validation import check
from retain.layers.lora_pool import LoraPool
from retain.learner import Learner
from retain.methods import METHODS
from retain.methods.shared.weights import MODEL
from retain.runs import results
from retain.system.files import read_jsonl
from retain.testing.runs import Record
from retain.testing.tiny import (
    TRAINING,
    make_backbone,
    make_learner,
    make_task,
    prompts_of,
    save_backbone,
)

ROUTED = ("sapt", "amlora", "seekr")
WHOLE = [name for name, method in METHODS.items() if MODEL in method.traits.latest_only]
FIRST, SECOND = make_task("copy"), make_task("constant")


def backbone_in(kind: str, dtype: torch.dtype) -> Backbone:
    backbone = make_backbone(kind)
    backbone.model.to(dtype)
    return backbone


@pytest.mark.parametrize(
    ("method", "how", "kind"),
    [
        *((method, "backbone", "llama") for method in METHODS if method not in WHOLE),
        ("seekr-lora", "backbone", "llama"),
        *((method, "autocast", "t5" if method in ROUTED else "llama") for method in METHODS),
    ],
)
def test_learns_in_bfloat16(method: str, how: str, kind: str, tmp_path: Path) -> None:
    """Every method learns two tasks, and a reloaded run answers as the one that learnt."""
    dtype = torch.bfloat16 if how == "backbone" else torch.float32
    learner = make_learner(
        method, backbone_in(kind, dtype), tmp_path / "run", bf16=how == "autocast"
    )
    learner.learn(FIRST)
    learner.learn(SECOND)
    answers = learner.generate(prompts_of(FIRST, SECOND), FIRST.name)
    again = Learner.load(tmp_path / "run", backbone=backbone_in(kind, dtype))
    assert again.generate(prompts_of(FIRST, SECOND), FIRST.name) == answers


@pytest.mark.parametrize(
    ("method", "device", "gpu", "dtype"),
    [
        ("sapt", None, True, "bfloat16"),
        ("sapt", "cpu", True, "float32"),
        ("sapt", None, False, "float32"),
        ("seqft", None, True, "float32"),
        ({"name": "derpp", "tune": "lora"}, "cuda", True, "bfloat16"),
    ],
)
def test_auto_is_resolved_by_device_and_method(
    method: Any, device: str | None, gpu: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: gpu)
    source = {"name": "x", "dtype": "auto", "device": device}
    experiment = check(ExperimentConfig, {"backbone": source, "method": method}, "test")
    assert resolved(experiment).backbone.dtype == dtype


def test_what_auto_stands_for_is_stored_and_told(tmp_path: Path) -> None:
    folder, record = save_backbone("llama", tmp_path / "model"), Record()
    source = BackboneConfig(name=str(folder), dtype="auto", device="cpu")
    learner = Learner(source, "seqlora", tmp_path / "run", training=TRAINING, progress=record)
    learner.learn(FIRST)
    assert "backbone.dtype: auto is float32 here" in record.said
    assert Learner.load(tmp_path / "run").experiment.backbone.dtype == "float32"


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_model_in_half_precision_is_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(RetainError, match="full fine-tuning does not work in"):
        make_learner(method, backbone_in("llama", torch.bfloat16), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not")  # torch reads it
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_compiled_pool_takes_the_same_gradients(kind: str) -> None:
    """In one graph: nothing of the pool breaks it."""
    backbone = make_backbone(kind)
    pool = LoraPool(backbone.model, None, rank=2, alpha=4)
    for name in ("a", "b", "c"):
        pool.grow(name, seed=0)
        for parameter in pool.parameters():
            parameter.data.normal_(std=0.1)
    weights = torch.softmax(torch.randn(3, 3), 1).requires_grad_(True)
    batch = backbone.collate([backbone.encode(example) for example in FIRST.train[:3]])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}

    def gradients(model: torch.nn.Module) -> list[Tensor]:
        pool.use(weights)
        return list(torch.autograd.grad(model(**inputs).loss, [weights, *pool.parameters()]))

    compiled = torch.compile(backbone.model, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(compiled), gradients(backbone.model), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sapt-prompt", "amlora"])
def test_a_compiled_model_answers_the_same(method: str, tmp_path: Path) -> None:
    learner = make_learner(method, make_backbone("llama"), tmp_path / "run")
    for task in (FIRST, SECOND):
        learner.learn(task)
    backbone = learner.backbone
    batch = backbone.collate(
        [backbone.encode(example, with_answer=False) for example in SECOND.test]
    )
    with torch.no_grad():
        learner.method.route(batch)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        expected = backbone.model(**inputs).logits
        compiled = torch.compile(backbone.model, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sapt", "amlora", "seekr"])
@torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)
def test_training_compiled_gives_the_same(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer compilations allowed than the stream has tasks, so that no graph is inherited."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled: list[nn.Module] = []
    call = nn.Module.compile

    def record(module: nn.Module) -> None:
        compiled.append(module)
        call(module)

    monkeypatch.setattr(nn.Module, "compile", record)
    logs = []
    for wanted in (False, True):
        learner = make_learner(
            method, make_backbone("llama"), tmp_path / str(wanted), torch_compile=wanted
        )
        for number in range(3):
            learner.learn(replace(SECOND if number % 2 else FIRST, name=f"task{number}"))
        logs.append(
            [
                row["loss"]
                for p in results.open_run(tmp_path / str(wanted)).learned()
                for row in read_jsonl(p / "training.jsonl")
            ]
        )
    assert len(compiled) >= 3
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.slow
def test_what_torch_cannot_compile_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    learner = make_learner("sapt", make_backbone("llama"), tmp_path / "run", torch_compile=True)
    said = "training.torch_compile: torch cannot compile this model here .*no C.. compiler found.*;"
    with pytest.raises(RetainError, match=said):
        learner.learn(FIRST)
