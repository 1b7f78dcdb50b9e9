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
from retain.backbone.precision import refuse_lacking, told
from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig, resolved
from retain.experiment.resume import refuse_changes, settled
from retain.experiment.validation import check
from retain.layers.lora_pool import LoraPool
from retain.learner.learner import Learner
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
FAST = (*ROUTED, "sapt-prompt", "seqlora", "replay")
SLOW = pytest.mark.slow
WHOLE = [name for name, method in METHODS.items() if MODEL in method.traits.latest_only]
FIRST, SECOND = make_task("copy"), make_task("constant")


def backbone_in(kind: str, dtype: torch.dtype) -> Backbone:
    backbone = make_backbone(kind)
    backbone.model.to(dtype)
    return backbone


@pytest.mark.parametrize(
    ("method", "how", "kind"),
    [
        *(
            pytest.param(method, "backbone", "llama", marks=() if method in FAST else SLOW)
            for method in METHODS
            if method not in WHOLE
        ),
        ("seekr-lora", "backbone", "llama"),
        *(
            pytest.param(
                *(method, "autocast", "t5" if method in ROUTED else "llama"),
                marks=() if method in FAST or method in WHOLE else SLOW,
            )
            for method in METHODS
        ),
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
    ("method", "device", "gpu", "dtype", "bf16"),
    [
        ("sapt", None, True, "bfloat16", False),
        ("sapt", "cpu", True, "float32", False),
        ("sapt", None, False, "float32", False),
        ("seqft", None, True, "float32", True),
        ("seqft", "cpu", True, "float32", False),
        ({"name": "derpp", "tune": "lora"}, "cuda", True, "bfloat16", False),
    ],
)
def test_auto_is_resolved_by_device_and_method(
    method: Any,
    device: str | None,
    gpu: bool,
    dtype: str,
    bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: gpu)
    source = {"name": "x", "device": device}
    experiment = check(ExperimentConfig, {"backbone": source, "method": method}, "test")
    here = resolved(experiment)
    assert (here.backbone.dtype, here.training.bf16) == (dtype, bf16)
    set_by_user = {"training": {"bf16": not bf16}, "backbone": {**source, "dtype": "float16"}}
    given = check(ExperimentConfig, {"method": method, **set_by_user}, "test")
    assert (resolved(given).backbone.dtype, resolved(given).training.bf16) == ("float16", not bf16)


def test_what_auto_stands_for_is_told_and_stays_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run goes on on a machine for which `auto` would be something else."""
    folder, record = save_backbone("llama", tmp_path / "model"), Record()
    source = BackboneConfig(name=str(folder), device="cpu")
    learner = Learner(source, "seqlora", tmp_path / "run", training=TRAINING, progress=record)
    learner.learn(FIRST)
    (told,) = [line for line in record.said if line.startswith("weights in")]
    assert told.startswith("weights in float32, on cpu")
    stored = Learner.load(tmp_path / "run").experiment
    assert (stored.backbone.dtype, stored.training.bf16) == ("float32", False)
    monkeypatch.setattr("retain.backbone.precision._gpu_has_bfloat16", lambda _: True)
    given = stored.model_copy(
        update={
            "backbone": stored.backbone.model_copy(update={"dtype": "auto"}),
            "training": stored.training.model_copy(update={"bf16": "auto"}),
        }
    )
    refuse_changes(stored, given, tmp_path / "run", 0)
    assert settled(given, stored) == stored
    given.backbone.dtype = "bfloat16"
    with pytest.raises(RetainError, match="dtype: float32 is now bfloat16"):
        refuse_changes(stored, given, tmp_path / "run", 0)


@pytest.mark.parametrize("autocast", [False, True])
def test_answers_are_computed_as_training_is(
    autocast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()
    generate = Backbone.generate

    def look(*args: Any, **options: Any) -> list[str]:
        seen.add(torch.is_autocast_enabled("cpu"))
        return generate(*args, **options)

    monkeypatch.setattr(Backbone, "generate", look)
    learner = make_learner("seqft", make_backbone("llama"), tmp_path / "run", bf16=autocast)
    learner.learn(replace(FIRST, training={"bf16": "auto"}))
    Learner.load(tmp_path / "run", backbone=make_backbone("llama")).generate(prompts_of(FIRST))
    assert seen == {autocast}


def test_a_format_that_the_device_lacks_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: Any, **__: Any) -> None:
        raise RuntimeError("'layer_norm' not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "layer_norm", lacks)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    folder = save_backbone("llama", tmp_path / "model")
    source = BackboneConfig(name=str(folder), dtype="float16", device="cpu")
    with pytest.raises(RetainError, match=r"backbone.dtype: cpu does not compute in float16 \('la"):
        Learner(source, "seqlora", tmp_path / "run")
    source.dtype = "float32"
    with pytest.raises(RetainError, match=r"training.bf16: cpu does not compute in bfloat16"):
        Learner(source, "seqlora", tmp_path / "run", training={"bf16": True})


@pytest.mark.parametrize(
    ("has", "slow", "fast"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "bfloat16", "float32"),
        ({"avx512_bf16": True}, "float32", "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "float32", "bfloat16"),
        ({"neon": True}, "", ""),  # torch tells nothing about bfloat16
    ],
)
def test_the_faster_format_of_a_cpu_is_told(
    has: dict[str, bool], slow: str, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    for dtype in ("float32", "bfloat16"):
        line = told(dtype, False, "cpu", False)
        assert line.endswith(f"--set backbone.dtype={fast}") == (dtype == slow)
    assert told("float32", True, "cpu", True).endswith("=false") == (slow == "bfloat16")
    assert "--set" not in told("bfloat16", False, "cuda", False)


def test_a_format_that_a_gpu_emulates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(RetainError, match=r"cuda does not compute in bfloat16 \(it would"):
        refuse_lacking("bfloat16", None, "backbone.dtype")
    refuse_lacking("float16", None, "backbone.dtype")


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
