"""What users run for speed: bfloat16, by the backbone or by autocast, and torch.compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.layers.pooled_linear import LoraPool
from retain.learner import Learner
from retain.methods import METHODS
from tests.tiny import make_backbone, make_learner, make_task, prompts_of

ROUTED = ("sapt", "amlora", "seekr")
WHOLE = [name for name, method in METHODS.items() if "tune" in method.Config.model_fields]
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


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_model_in_half_precision_is_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(RetainError, match="a whole model does not learn in"):
        make_learner(method, backbone_in("llama", torch.bfloat16), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_compiled_pool_takes_the_same_gradients(kind: str) -> None:
    """In one graph: nothing of the pool breaks it."""
    backbone = make_backbone(kind)
    pool = LoraPool(backbone.model, None, rank=2, alpha=4)
    for name in ("a", "b", "c"):
        pool.grow(name)
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
