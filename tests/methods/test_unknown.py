"""Prompts of no learned task: the backbone answers alone, and what answers and reports say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import ValidationError

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.evaluation.streaming import Reply
from retain.export import export
from retain.learner.learner import Learner
from retain.methods.sapt.method import SaptPrompt
from retain.methods.sapt.options import RouterConfig, SaptPromptConfig
from retain.methods.sapt.whitened import THRESHOLD, WhitenedOptions, WhitenedRouter
from retain.runs.results import open_run
from retain.serve.app import create_app
from retain.tasks import Example
from retain.testing.tiny import context_of, make_backbone, make_task, prompts_of, save_backbone
from tests.command import call

LEARNED = ("copy", "letter")
KNOWN = prompts_of(*(make_task(name) for name in LEARNED))
UNKNOWN = ["What else is there?", "what colour has a lion?", "what colour is a very old rat?"]
BASE = {"kind": "whitened", "unknown": "base", "threshold": 0.5}
METHODS = {
    "sapt": {"name": "sapt", "router": BASE},
    "sparse": {"name": "sapt", "router": {**BASE, "top_k": 2}},
    "sapt-prompt": {"name": "sapt-prompt", "length": 3, "rate": 1.0, "router": BASE},
}


def learned(method: str, backbone: Backbone | Path, folder: Path) -> Learner:
    """Learns two tasks, hard enough to change what the backbone answers."""
    training = {"max_steps": 8, "learning_rate": 0.05}
    learner = Learner(backbone, METHODS[method], folder, training=training)
    for name in LEARNED:
        learner.learn(make_task(name))
    return learner


@pytest.fixture(scope="module", params=[(m, k) for m in METHODS for k in ("llama", "t5")])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    method, kind = request.param
    return learned(method, make_backbone(kind), tmp_path_factory.mktemp(f"{method}-{kind}") / "run")


def bare_answers(kind: str, prompts: list[str], count: int) -> list[str]:
    backbone = make_backbone(kind)
    answers = []
    for prompt in prompts:
        row = backbone.encode(Example(prompt, ("",)), with_answer=False)
        answers += backbone.generate(backbone.collate([row]), count)
    return answers


def test_the_backbone_alone_answers_an_unknown_prompt(pair: Learner) -> None:
    kind = "t5" if pair.backbone.is_encoder_decoder else "llama"
    prompts = [prompt for two in zip(KNOWN, UNKNOWN, strict=False) for prompt in two] + KNOWN[3:]
    answers = pair.answers(prompts)  # known and unknown together, of several lengths
    alone = [pair.answers([prompt])[0] for prompt in prompts]
    streamed: list[list[str]] = [[] for _ in prompts]
    pair.answers(prompts, replies=[Reply(pieces.append) for pieces in streamed])
    for answer, single, pieces in zip(answers, alone, streamed, strict=True):
        assert answer.output == single.output == "".join(pieces)
        assert answer.routing is not None
        assert single.routing is not None
        assert answer.routing == pytest.approx(single.routing, abs=1e-5)
        assert sum(answer.routing.values()) == pytest.approx(float(answer.prompt in KNOWN))
        assert ("note" in answer.routing_fields()) == (answer.prompt in UNKNOWN)
    bare = dict(zip(prompts, bare_answers(kind, prompts, pair.answer_limit), strict=True))
    for answer in answers:
        assert answer.prompt in KNOWN or answer.output == bare[answer.prompt]
    assert any(answer.output != bare[answer.prompt] for answer in answers)


def test_its_logits_are_the_bare_backbones(pair: Learner) -> None:
    kind = "t5" if pair.backbone.is_encoder_decoder else "llama"
    rows = [make_task("constant").test[0], make_task("copy").test[0], make_task("constant").test[1]]
    backbone, bare = pair.backbone, make_backbone(kind)
    batch = backbone.collate([backbone.encode(row) for row in rows])
    plain = bare.collate([bare.encode(row) for row in rows])
    with torch.no_grad():
        expected = bare.answer_logits(plain)[0]
        for _ in range(2):  # routing twice changes nothing more
            pair.method.route(batch)
            logits = backbone.answer_logits(batch)[0]
            torch.testing.assert_close(logits[::2], expected[::2], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(logits[1], expected[1], atol=1e-2)


def test_a_bart_counts_no_hidden_token(tmp_path: Path) -> None:
    """Its encoder has a position for masked tokens too."""
    learner = learned("sapt-prompt", make_backbone("bart"), tmp_path / "run")
    answers = learner.answers([KNOWN[0], *UNKNOWN])
    assert [a.routing is not None and not any(a.routing.values()) for a in answers[1:]] == [
        True
    ] * 3
    bare = bare_answers("bart", UNKNOWN, learner.answer_limit)
    assert [answer.output for answer in answers[1:]] == bare


def test_a_new_tasks_own_prompts_are_never_unknown_in_training() -> None:
    options = WhitenedOptions(unknown="base", threshold=9.0)
    backbone = make_backbone("llama")
    router = WhitenedRouter(backbone, options, None)
    soft = WhitenedRouter(backbone, WhitenedOptions(), None)
    for each in (router, soft):
        for name in LEARNED:
            each.add_task(make_task(name), context_of(make_task(name), Path()))
    e = router.embed([*KNOWN, *UNKNOWN])
    assert not router(e).any()
    assert torch.equal(router.train()(e), soft(e))
    assert torch.equal(router.attention(e), soft.attention(e))


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    nearest = {**METHODS["sapt"], "router": {"kind": "whitened"}}
    other = Learner(
        make_backbone("llama"),
        nearest,
        tmp_path / "nearest",
        training={"max_steps": 8, "learning_rate": 0.05},
    )
    for name in LEARNED:
        other.learn(make_task(name))
    learned("sapt", make_backbone("llama"), tmp_path / "base")
    for path in sorted((tmp_path / "base/tasks").rglob("*.safetensors")):
        same = tmp_path / "nearest/tasks" / path.relative_to(tmp_path / "base/tasks")
        assert path.read_bytes() == same.read_bytes()


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ({"kind": "attention", "unknown": "base"}, "unknown is no option of kind: attention"),
        ({"kind": "whitened", "threshold": 0.1}, "threshold is for unknown: base; set that"),
        ({**BASE, "threshold": -0.5}, "greater than or equal to 0"),
        ({**BASE, "unknown": "other"}, "'base' or 'nearest'"),
    ],
)
def test_options_without_effect_are_refused(router: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RouterConfig.model_validate(router)
    assert RouterConfig.model_validate({**BASE, "threshold": THRESHOLD}).unknown == "base"


def test_a_backbone_that_sees_masked_tokens_is_refused() -> None:
    backbone = make_backbone("llama")
    backbone.sees_padding = True
    config = SaptPromptConfig.model_validate({"router": BASE})
    with pytest.raises(RetainError, match=r"unknown: base: LlamaForCausalLM cannot mask"):
        SaptPrompt(backbone, config)


def test_the_command_the_server_and_reports_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    learner = learned("sapt-prompt", save_backbone("llama", tmp_path / "backbone"), folder)
    task = make_task("constant")
    learner.learn(task)
    shown = call("generate", folder, "--json", KNOWN[0], UNKNOWN[0])
    known, unknown = map(json.loads, shown.out.splitlines())
    assert list(known) == ["prompt", "output", "routing"]
    assert unknown["note"] == "no learned task"
    assert set(unknown["routing"].values()) == {0.0}
    with TestClient(create_app(learner)) as client:

        def asked(prompt: str, **fields: object) -> dict[str, object]:
            body = {"messages": [{"role": "user", "content": prompt}], **fields}
            response: dict[str, object] = client.post("/v1/chat/completions", json=body).json()
            return response

        assert asked(UNKNOWN[0])["note"] == "no learned task"
        assert "routing" not in asked(UNKNOWN[0])
        assert asked(UNKNOWN[0], routing=True)["routing"] == unknown["routing"]
        assert "note" not in asked(KNOWN[0], routing=True)
    sections = {s.title: s for s in type(learner.method).diagnostics(open_run(folder), None)}
    rows = dict(sections["Test prompts of no learned task"].grids[0].rows)
    assert list(rows) == [*LEARNED, "constant"]
    counted = sum(
        not any(answer.routing.values())
        for answer in learner.answers([example.prompt for example in task.test])
        if answer.routing is not None
    )
    assert rows["constant"] == [f"{counted} of 4"] * 2
    assert "no learned task" in call("inspect", folder).out


def test_counts_follow_the_stored_routing(tmp_path: Path) -> None:
    """A threshold that no prompt reaches makes all prompts unknown, right away and later."""
    method = {**METHODS["sapt"], "router": {**BASE, "threshold": 9.0}}
    learner = Learner(make_backbone("llama"), method, tmp_path / "run", training={"max_steps": 1})
    for name in LEARNED:
        learner.learn(make_task(name))
    run = open_run(tmp_path / "run")
    sections = {section.title: section for section in type(learner.method).diagnostics(run, None)}
    rows = dict(sections["Test prompts of no learned task"].grids[0].rows)
    assert rows == {name: ["4 of 4", "4 of 4"] for name in LEARNED}


@pytest.mark.parametrize("mixture", [None, {"copy": 1.0}])
def test_an_export_says_what_it_leaves_behind(
    mixture: dict[str, float] | None, tmp_path: Path
) -> None:
    learner = learned("sapt", make_backbone("llama"), tmp_path / "run")
    said = export(learner, tmp_path / "out", mixture)
    assert "not told apart outside the run (router.unknown)" in said
    assert "router.unknown" in (tmp_path / "out/README.md").read_text()
