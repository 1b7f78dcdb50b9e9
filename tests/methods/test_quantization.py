"""Backbones in 4 and 8 bits: what learns beside them, and what they refuse."""

from __future__ import annotations

import json
import logging
from importlib import util
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from retain.backbone import Backbone, BackboneConfig, load_backbone, probe
from retain.backbone.quantization import NO_KERNEL, is_quantized, prepare
from retain.errors import RetainError
from retain.export import export
from retain.layers.lora_pool import LoraPool
from retain.learner.learner import Learner
from retain.methods import METHODS, find
from retain.runs import results
from retain.testing import tiny
from retain.testing.runs import KilledError, Record, content
from retain.testing.tiny import EVALUATION, OWN_VARIANTS, TRAINING, make_task, prompts_of

BITS = ("nf4", "int8")
FIRST, SECOND = make_task("copy"), make_task("constant")
FROZEN = [
    name
    for name in OWN_VARIANTS
    if not METHODS[OWN_VARIANTS[name][0]].trains_backbone(
        METHODS[OWN_VARIANTS[name][0]].Config(**OWN_VARIANTS[name][1])
    )
    and (name in METHODS or name.endswith("-lora"))
]
FAST_ON_CPUS = "support_avx512bf16_for_cpu"
"""Of bitsandbytes' layers: whether evaluation packs weights anew, on CPUs with AVX512-BF16."""
FAST = (("sapt", "nf4"), ("seqlora", "int8"), ("sapt-prompt", "nf4"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders whose layers hold whole blocks of 64 weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", 64)
        return {
            kind: tiny.save_backbone(kind, tmp_path_factory.mktemp(kind) / kind)
            for kind in ("llama", "t5", "gpt2")
        }


def source(folder: Path, bits: str | None, **options: Any) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": str(folder), "quantization": bits, **options})


def learner_on(backbone: BackboneConfig, method: str, run: Path, **training: Any) -> Learner:
    name, options = OWN_VARIANTS[method]
    return Learner(
        backbone,
        {"name": name, **options},
        run,
        training={**TRAINING, **training},
        evaluation=EVALUATION,
    )


def logits_of(backbone: Backbone) -> Tensor:
    batch = backbone.collate([backbone.encode(example) for example in FIRST.test])
    with torch.no_grad():
        return backbone.answer_logits(batch)[0]


def test_answers_that_8_bits_let_depend_on_the_batch_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = chain([0.0], repeat(0.3))  # as on SmolLM2-135M, after what is not read ahead
    monkeypatch.setattr(probe, "_difference", lambda *_: next(measured))
    with pytest.raises(RetainError, match=r"its batch; take backbone.quantization=nf4, or none$"):
        load_backbone(source(folders["llama"], "int8"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "t5", "gpt2"])
@pytest.mark.parametrize("bits", BITS)
def test_each_layer_takes_a_gradient_and_changes_the_output(
    bits: str, kind: str, dtype: str, folders: dict[str, Path]
) -> None:
    """Also after an evaluation, in which bitsandbytes would pack the weights anew on some CPUs."""
    backbone = load_backbone(source(folders[kind], bits, dtype=dtype))
    pool = LoraPool(backbone.model, None, rank=2, alpha=4)
    assert all(is_quantized(layer) for layer in pool.layers.values())
    assert not any(getattr(part, FAST_ON_CPUS, False) for part in backbone.model.modules())
    pool.grow("copy", seed=0)
    pool.use_block(len(FIRST.test), 0)
    plain = logits_of(backbone)
    for name, layer in pool.layers.items():
        assert layer.B is not None
        with torch.no_grad():
            layer.B.normal_(std=0.5)
        assert not torch.equal(logits_of(backbone), plain), name
        with torch.no_grad():
            layer.B.zero_()
    for training in (True, False):
        backbone.model.train(training)
        batch = backbone.collate([backbone.encode(example) for example in FIRST.test])
        gradients = torch.autograd.grad(
            backbone.answer_loss(batch), [layer.B for layer in pool.layers.values()]
        )
        for name, gradient in zip(pool.layers, gradients, strict=True):
            assert gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        pytest.param(method, bits, marks=() if (method, bits) in FAST else pytest.mark.slow)
        for method in FROZEN
        for bits in BITS
    ],
)
def test_every_method_learns_and_a_loaded_run_answers_the_same(
    method: str, bits: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    kind = "t5" if method in ("sapt", "progprompt", "ewc-lora") else "llama"
    learner = learner_on(source(folders[kind], bits), method, tmp_path / "run")
    for task in (FIRST, SECOND):
        learner.learn(task)
    answers = learner.generate(prompts_of(FIRST, SECOND), FIRST.name)
    again = Learner.load(tmp_path / "run")
    assert is_quantized(again.model)
    assert again.generate(prompts_of(FIRST, SECOND), FIRST.name) == answers
    stored = results.environment(again.run)
    assert stored["bitsandbytes"] == bitsandbytes.__version__


@pytest.mark.parametrize("bits", BITS)
def test_a_checkpoint_that_is_quantised_already(
    bits: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """It answers as the one that is quantised at load, and its runs can be loaded."""
    made = load_backbone(source(folders["llama"], bits))
    expected = logits_of(made)
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    torch.testing.assert_close(
        logits_of(load_backbone(source(tmp_path / "model", None))), expected, rtol=0, atol=0
    )
    learner = learner_on(source(tmp_path / "model", None), "sapt", tmp_path / "run")
    learner.learn(FIRST)
    again = Learner.load(tmp_path / "run")
    assert again.generate(prompts_of(FIRST)) == learner.generate(prompts_of(FIRST))
    export(again, tmp_path / "exported", {FIRST.name: 1.0})
    exported = load_backbone(BackboneConfig(name=str(tmp_path / "exported")))
    assert not is_quantized(exported.model)
    with pytest.raises(RetainError, match="quantised already; leave it out"):
        load_backbone(source(tmp_path / "model", bits))
    with pytest.raises(RetainError, match="full fine-tuning does not work in 4 or 8 bits"):
        learner_on(source(tmp_path / "model", None), "seqft", tmp_path / "full")


@pytest.mark.parametrize("bits", BITS)
def test_a_loaded_quantised_model_is_recorded_as_such(
    bits: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load_backbone(source(folders["llama"], bits))
    learner = Learner(
        (backbone.model, backbone.tokenizer),
        "seqlora",
        tmp_path / "run",
        training=TRAINING,
        evaluation=EVALUATION,
    )
    assert learner.experiment.backbone.quantization == bits
    learner.learn(FIRST)
    answers = learner.generate(prompts_of(FIRST))
    assert Learner.load(tmp_path / "run").generate(prompts_of(FIRST)) == answers


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("method", "mixture", "kind"),
    [
        ("pertask", {"copy": 0.25, "constant": 0.75}, "llama"),
        ("seqlora", None, "gpt2"),
        ("seqlora", None, "t5"),
    ],
)
def test_a_merged_model_has_the_blocks(
    method: str,
    mixture: dict[str, float] | None,
    bits: str,
    kind: str,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    learner = learner_on(source(folders[kind], bits), method, tmp_path / "run")
    for task in (FIRST, SECOND):
        learner.learn(task)
    pool = learner.method.exported_pool
    assert isinstance(pool, LoraPool)
    weights = list(mixture.values()) if mixture else [1.0]
    pool.use(None)
    without = logits_of(learner.backbone)
    pool.use(torch.tensor([weights] * len(FIRST.test)))
    expected = logits_of(learner.backbone)
    said = export(learner, tmp_path / "out", mixture)
    assert "one model, in torch.float32 instead of its quantised weights" in said
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out")
    assert not is_quantized(model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    exported = logits_of(Backbone(model, tokenizer, "exported"))
    rounding = (exported - expected).abs().mean()
    share = 0.02 if bits == "nf4" else 0.2  # 8 bits round activations too
    assert rounding < share * (expected - without).abs().mean()


@pytest.mark.parametrize("bits", BITS)
def test_a_merged_model_without_its_block_is_refused(
    bits: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_on(source(folders["llama"], bits), "seqlora", tmp_path / "run")
    learner.learn(FIRST)
    monkeypatch.setattr(LoraPool, "merge", lambda self, _: self.use(None))
    with pytest.raises(RetainError, match=r"differ by .*; export adapters, without task and mix"):
        export(learner, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
@pytest.mark.parametrize("bits", BITS)
def test_exported_adapters_say_how_the_backbone_is_loaded(
    bits: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    learner = learner_on(source(folders["llama"], bits), "pertask", tmp_path / "run")
    learner.learn(FIRST)
    export(learner, tmp_path / "out", None)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("'out/", f"'{tmp_path}/out/"), names)
    # On a CPU with AVX512-BF16 bitsandbytes itself takes widths in multiples of 32 only.
    prepare(names["model"].base_model.model)
    batch = learner.backbone.collate([learner.backbone.encode(e) for e in FIRST.test])
    learner.method.route(batch, "copy")
    with torch.no_grad():
        expected = learner.backbone.answer_logits(batch)[0]
    exported = logits_of(
        Backbone(names["model"].base_model.model, learner.backbone.tokenizer, "exported")
    )
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-4)


def test_only_the_line_on_a_missing_kernel_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    spec = util.find_spec("bitsandbytes.backends.cpu.ops")
    assert spec is not None
    assert f'"{NO_KERNEL}: %s.' in Path(str(spec.origin)).read_text(encoding="utf-8")
    logger = logging.getLogger(spec.name)
    logger.warning(f"{NO_KERNEL}: %s. Please", ImportError("No module named 'kernels'"))
    logger.warning("something else")
    assert caplog.messages == ["something else"]


@pytest.mark.parametrize("bits", BITS)
def test_an_interrupted_task_ends_with_the_same_bytes(
    bits: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    learner_on(source(folders["llama"], bits), "sapt", tmp_path / "whole").learn(FIRST)
    record = Record(lambda event: event.startswith("2 copy"))
    learner = learner_on(source(folders["llama"], bits), "sapt", tmp_path / "run")
    learner.progress = record
    with pytest.raises(KilledError):
        learner.learn(FIRST)
    Learner.load(tmp_path / "run").learn(FIRST)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize("method", ["seqft", "derpp", "ewc"])
def test_full_fine_tuning_is_refused_before_anything_is_loaded(
    method: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    with pytest.raises(RetainError, match="full fine-tuning does not work in 4 or 8 bits"):
        learner_on(source(folders["llama"], "nf4"), method, tmp_path / "run")
    with pytest.raises(RetainError, match="full fine-tuning does not work in bfloat16"):
        learner_on(source(folders["llama"], None, dtype="bfloat16"), method, tmp_path / "run")
    assert find(method) is not None
    assert not (tmp_path / "run").exists()


def test_without_the_package(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    there = util.find_spec
    monkeypatch.setattr(
        "retain.backbone.quantization.find_spec",
        lambda name: None if name == "bitsandbytes" else there(name),
    )
    with pytest.raises(RetainError, match=r"pip install 'retain\[quantization\]'"):
        load_backbone(source(folders["llama"], "nf4"))


def test_a_device_that_cannot(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(RetainError, match=r"backbone.device 'cpu': .* there, only on cuda"):
        load_backbone(source(folders["llama"], "int8"))


def test_an_older_checkpoint_does_not_name_the_package(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made = load_backbone(source(folders["llama"], "nf4"))
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del values["quantization_config"]["quant_method"]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert is_quantized(load_backbone(source(tmp_path, None)).model)


def test_other_quantisations_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(source(folders["llama"], None))
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(RetainError, match="quantised by gptq, through which retain does not train"):
        load_backbone(source(tmp_path, None))
