"""A run goes on with what it was begun with, or says what has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retain import RetainError
from retain.environment import fingerprint
from retain.learner import Learner
from retain.progress import Progress
from retain.store import RunDirectory
from tests.tiny import KINDS, make_backbone, make_learner, make_task


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("kind", KINDS)
def test_one_number_makes_another_fingerprint(kind: str) -> None:
    model = make_backbone(kind).model
    before = fingerprint(model)
    assert fingerprint(make_backbone(kind).model) == before
    with torch.no_grad():
        next(p for p in model.parameters() if p.numel() < 1024).flatten()[-1] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.parametrize("method", ["seqlora", "seqft"])
def test_another_backbone_is_refused(method: str, tmp_path: Path) -> None:
    learner = make_learner(method, make_backbone("llama"), tmp_path / "run", max_steps=1)
    learner.learn(make_task("copy"))
    Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    other = make_backbone("llama")
    with torch.no_grad():
        other.embedding.weight.mul_(1.01)
    with pytest.raises(RetainError, match="learned on other weights"):
        Learner.load(tmp_path / "run", backbone=other)


def test_other_versions_are_told(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", max_steps=1)
    learner.learn(make_task("copy"))
    heard = Heard()
    Learner.load(tmp_path / "run", heard, make_backbone("llama"))
    assert heard.lines == []
    path = tmp_path / "run" / "environment.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "torch": "1.0"}))
    run = RunDirectory(tmp_path / "run")
    run.load_manifest()
    run.commit([path])
    Learner.load(tmp_path / "run", heard, make_backbone("llama"))
    (line,) = heard.lines
    assert line.startswith(f"begun with other versions: torch 1.0 is now {stored['torch']}; ")
