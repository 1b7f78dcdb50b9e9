"""Learning in bfloat16: a backbone kept in it, and autocast over one in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retain.backbone import Backbone
from retain.learner import Learner
from retain.methods import METHODS
from tests.tiny import make_backbone, make_learner, make_task, prompts_of

FIRST, SECOND = make_task("copy"), make_task("constant")


def backbone_in(kind: str, dtype: torch.dtype) -> Backbone:
    backbone = make_backbone(kind)
    backbone.model.to(dtype)
    return backbone


@pytest.mark.parametrize(
    ("how", "kind"), [("backbone", "llama"), ("backbone", "t5"), ("autocast", "llama")]
)
@pytest.mark.parametrize("method", METHODS)
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
