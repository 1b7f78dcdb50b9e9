"""What is exported answers as the run does, in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from retain import RetainError
from retain.backbone import Backbone
from retain.export import export
from retain.learner import Learner
from tests.tiny import make_backbone, make_learner, make_task

FIRST, SECOND = make_task("copy"), make_task("constant")


def learned(method: str, kind: str, folder: Path) -> Learner:
    learner = make_learner(method, make_backbone(kind), folder)
    for task in (FIRST, SECOND):
        learner.learn(task)
    return learner


def logits(backbone: Backbone) -> Tensor:
    batch = backbone.collate([backbone.encode(example) for example in FIRST.test])
    with torch.no_grad():
        return backbone.answer_logits(batch)[0]


def plain(folder: Path, kind: str) -> Backbone:
    """The exported model as anybody loads it."""
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return Backbone(model, AutoTokenizer.from_pretrained(folder), "plain")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    ("method", "mixture"),
    [
        ("pertask", {"copy": 1.0}),
        ("sapt", {"copy": 0.25, "constant": 0.75}),
        ("seqlora", None),
        ("inclora", None),
        ("seqft", None),
    ],
)
def test_a_merged_model_is_the_mixture(
    method: str, mixture: dict[str, float] | None, kind: str, tmp_path: Path
) -> None:
    learner = learned(method, kind, tmp_path / "run")
    batch = learner.backbone.collate([learner.backbone.encode(e) for e in FIRST.test])
    if mixture is None:
        learner.method.route(batch)
    else:
        weights = [mixture.get(name, 0.0) for name in ("copy", "constant")]
        learner.method.pool.use(torch.tensor(weights).expand(len(FIRST.test), -1))
    expected = logits(learner.backbone)
    said = export(learner, tmp_path / "out", mixture)
    assert said.startswith(f"wrote {tmp_path / 'out'}: one model")
    torch.testing.assert_close(logits(plain(tmp_path / "out", kind)), expected, rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "after constant" in card
    assert "base_model: " in card


def test_adapters_are_those_of_the_run(tmp_path: Path) -> None:
    learner = learned("sapt", "llama", tmp_path / "run")
    (tmp_path / "out").mkdir()
    said = export(learner, tmp_path / "out", None)
    assert "2 PEFT adapters; which of them counts depends on the input" in said
    for folder in learner.run.learned():
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            copied = tmp_path / "out" / folder.name / name
            assert copied.read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("method", "mixture", "says"),
    [
        ("sapt", {"nothing": 1.0}, "no task 'nothing'; name one of copy, constant"),
        ("seqlora", {"copy": 1.0}, "there is one set of weights; leave out task and mixture"),
        ("l2p", None, "keeps neither LoRA blocks nor a whole model"),
        ("l2p", {"copy": 1.0}, "there is one set of weights"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    method: str, mixture: dict[str, float] | None, says: str, tmp_path: Path
) -> None:
    learner = learned(method, "llama", tmp_path / "run")
    with pytest.raises(RetainError, match=says):
        export(learner, tmp_path / "out", mixture)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    learner = learned("seqlora", "llama", tmp_path / "run")
    with pytest.raises(RetainError, match="is not an empty folder; name another one"):
        export(learner, tmp_path / "run", None)
