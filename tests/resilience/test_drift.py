"""A run goes on with what it was begun with, or says what has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers

from retain import RetainError
from retain.backbone import Backbone, BackboneConfig, PromptConfig, load_backbone
from retain.learner.learner import Learner
from retain.learner.stream import learn_stream
from retain.learner.upkeep import roll_back
from retain.learner.upkeep import verify as verify_run
from retain.runs import environment
from retain.runs.environment import fingerprint, fingerprints
from retain.runs.results import open_run
from retain.system import processes
from retain.testing.runs import Record
from retain.testing.tiny import (
    KINDS,
    TRAINING,
    make_backbone,
    make_learner,
    make_task,
    save_backbone,
)


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


def other_chat(backbone: Backbone) -> None:
    backbone.tokenizer.chat_template = "{{ messages[0].content }}? "


def other_end(backbone: Backbone) -> None:
    backbone.model.generation_config.eos_token_id = [1, 5]


def other_words(backbone: Backbone) -> None:
    backbone.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def other_positions(backbone: Backbone) -> None:
    backbone.model.config.rms_norm_eps = 0.1


DRIFTS: dict[str, Callable[[Backbone], None]] = {
    "chat template": other_chat,
    "special tokens": other_end,
    "tokenizer": other_words,
    r"settings \(config.json\)": other_positions,
}


def chatting(folder: Path) -> None:
    """A learned run whose prompts are written with a chat template."""
    learner = Learner(with_template(), "seqlora", folder, training={**TRAINING, "max_steps": 1})
    learner.learn(make_task("copy"))


def with_template() -> Backbone:
    plain = make_backbone("llama")
    turns = "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    plain.tokenizer.chat_template = turns
    return Backbone(plain.model, plain.tokenizer, plain.source, PromptConfig(chat_template=True))


@pytest.mark.parametrize("part", DRIFTS)
def test_what_else_of_a_backbone_changed_is_refused(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under other libraries it may only come out otherwise, and is told."""
    chatting(tmp_path)
    Learner.load(tmp_path, backbone=with_template())
    other = with_template()
    DRIFTS[part](other)
    with pytest.raises(RetainError, match=f"learned on other {part} than backbone 'tiny-llama'"):
        Learner.load(tmp_path, backbone=other)
    monkeypatch.setattr(environment, "version", lambda name: "99.0")
    heard = Record()
    Learner.load(tmp_path, heard, other)
    assert re.match(f"backbone 'tiny-llama': other {part} than", heard.said[0])


def test_processes_that_loaded_different_backbones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = make_backbone("llama")
    other = {**fingerprints(backbone), "backbone": "another"}
    monkeypatch.setattr(processes, "gather", lambda values: [*values, other])
    with pytest.raises(RetainError, match=r"have loaded others \(weights differ\); give every"):
        fingerprints(backbone)


def test_a_chat_template_that_nobody_uses_may_change(tmp_path: Path) -> None:
    make_learner("seqlora", make_backbone("llama"), tmp_path, max_steps=1).learn(make_task("copy"))
    other = make_backbone("llama")
    other_chat(other)
    Learner.load(tmp_path, backbone=other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_is_the_same_wherever_it_comes_from(kind: str, tmp_path: Path) -> None:
    """Made in memory, or loaded from a folder, and used before or not."""
    made = make_backbone(kind)
    loaded = load_backbone(BackboneConfig(name=str(save_backbone(kind, tmp_path))))
    assert fingerprints(loaded) == fingerprints(made)
    loaded.tokenizer(["a", "bc"], padding=True, truncation=True, max_length=2)
    assert fingerprints(loaded) == fingerprints(made)


def test_a_run_that_lacks_a_fingerprint_is_refused(tmp_path: Path) -> None:
    make_learner("seqlora", make_backbone("llama"), tmp_path, max_steps=1).learn(make_task("copy"))
    path = tmp_path / "environment.json"
    stored = json.loads(path.read_text())
    del stored["backbone_tokenizer"]
    open_run(tmp_path).write({path: json.dumps(stored).encode()})
    with pytest.raises(RetainError, match=r"environment.json: has no 'backbone_tokenizer'; rest"):
        Learner.load(tmp_path, backbone=make_backbone("llama"))


def test_other_versions_are_told(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", max_steps=1)
    learner.learn(make_task("copy"))
    heard = Record()
    Learner.load(tmp_path / "run", heard, make_backbone("llama"))
    assert heard.said == []
    path = tmp_path / "run" / "environment.json"
    stored = json.loads(path.read_text())
    open_run(tmp_path / "run").write({path: json.dumps({**stored, "torch": "1.0"}).encode()})
    Learner.load(tmp_path / "run", heard, make_backbone("llama"))
    (line,) = heard.said
    assert line.startswith(f"begun with other versions: torch 1.0 is now {stored['torch']}; ")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("tasks: []", "tasks: [{path: copy.jsonl, epochs: 3}]", "tasks.0.epochs"),
        ("rank: ", "power: 2\n  rank: ", "method.power"),
    ],
)
def test_settings_of_another_version_are_named_as_such(
    old: str, new: str, field: str, tmp_path: Path
) -> None:
    """Whoever removed the field would break the file's checksum."""
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", max_steps=1)
    learner.learn(make_task("copy"))
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    assert old in text
    run = open_run(tmp_path / "run")
    run.write({path: text.replace(old, new).encode()})
    says = (
        f"{path}: written by another version of retain (unknown field '{field}'); use that "
        "version, or start another run"
    )
    for reads in (
        lambda: Learner.load(tmp_path / "run", backbone=make_backbone("llama")),
        lambda: learn_stream(learner.experiment, [], resume=True),
        lambda: roll_back(tmp_path / "run", "copy"),
        lambda: verify_run(run),
    ):
        with pytest.raises(RetainError, match=f"^{re.escape(says)}$"):
            reads()
