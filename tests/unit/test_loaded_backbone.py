"""A Learner on a model that is loaded already, and its use in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from retain.backbone import PromptConfig
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.tasks import Example
from retain.testing.tiny import EVALUATION, TRAINING, make_learner, make_task, prompts_of

Folder = Callable[[str], Path]
COPY, CONSTANT = make_task("copy"), make_task("constant")


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model, AutoTokenizer.from_pretrained(folder)


def learn(backbone: Any, folder: Path, **options: Any) -> Learner:
    method = {"name": "seqlora", "rank": 2}
    learner = Learner(backbone, method, folder, training=TRAINING, evaluation=EVALUATION, **options)
    learner.learn(COPY)
    return learner


def test_a_loaded_model_makes_the_run_of_its_name(backbone_folder: Folder, tmp_path: Path) -> None:
    source = backbone_folder("llama")
    named = learn(source, tmp_path / "named")
    given = learn(load(source), tmp_path / "given", prompt={"max_prompt_tokens": 512})
    assert given.experiment.backbone == named.experiment.backbone
    answers = named.answers(prompts_of(COPY))
    assert given.answers(prompts_of(COPY)) == answers
    assert Learner.load(tmp_path / "given").answers(prompts_of(COPY)) == answers
    again = Learner.load(tmp_path / "named", backbone=load(source))
    assert again.answers(prompts_of(COPY)) == answers


def test_the_dtype_is_recorded(backbone_folder: Folder, tmp_path: Path) -> None:
    source = backbone_folder("llama")
    learner = learn(load(source, dtype=torch.bfloat16), tmp_path / "run")
    assert learner.experiment.backbone.dtype == "bfloat16"
    Learner.load(tmp_path / "run")  # which refuses other weights


def test_a_model_without_a_name_is_given_again(backbone_folder: Folder, tmp_path: Path) -> None:
    model, tokenizer = load(backbone_folder("llama"))
    model.name_or_path = model.config.name_or_path = ""
    learner = learn((model, tokenizer), tmp_path / "run")
    with pytest.raises(RetainError, match=r"run: its backbone was .* without a name; give it") as e:
        Learner.load(tmp_path / "run")
    assert "\n" not in str(e.value)
    again = Learner.load(tmp_path / "run", backbone=load(backbone_folder("llama")))
    assert again.answers(["copy this word: owl"]) == learner.answers(["copy this word: owl"])


def test_other_pairs_are_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    model, tokenizer = load(backbone_folder("llama"))
    for pair, message in {
        (
            model,
            "tokenizer",
        ): r"a transformers model .*, got \(LlamaForCausalLM, str\)",
        (tokenizer, model): "a transformers model and its tokenizer",
        (model,): r"got \(LlamaForCausalLM\)",
        model: r"got \(LlamaForCausalLM\); give \(model, tokenizer\)",
        None: r"expected a name, .* got \(NoneType\)",
        (model.double(), tokenizer): "is in float64; load it in float32, bfloat16, float16",
    }.items():
        with pytest.raises(RetainError, match=message):
            Learner(pair, output=tmp_path / "run")
    learner = Learner((model.float(), tokenizer), "seqlora", tmp_path / "run")
    with pytest.raises(RetainError, match="carries a Learner's layers; load a fresh one"):
        Learner((model, tokenizer), "seqlora", tmp_path / "run")
    with pytest.raises(RetainError, match="Backbone has its own prompt"):
        Learner(learner.backbone, "seqlora", tmp_path / "run", prompt=PromptConfig())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification])
def test_a_model_that_generates_nothing_is_refused(
    kind: Any, backbone_folder: Folder, tmp_path: Path
) -> None:
    source = backbone_folder("llama")
    pair = kind.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    with pytest.raises(RetainError, match="generates no text; load the model with AutoModelForC"):
        Learner(pair, "seqlora", tmp_path / "run")


def test_a_model_without_weights_is_refused(backbone_folder: Folder, tmp_path: Path) -> None:
    model, tokenizer = load(backbone_folder("llama"))
    with pytest.raises(RetainError, match="is on the meta device; load it with its weights"):
        Learner((model.to("meta"), tokenizer), "seqlora", tmp_path / "run")


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RetainError, match="backbone: its name is empty; name a hub id"):
        Learner("", "seqlora", tmp_path / "run")


def test_a_pair_may_be_a_list(backbone_folder: Folder, tmp_path: Path) -> None:
    source = backbone_folder("llama")
    learn([*load(source)], tmp_path / "run")
    Learner.load(tmp_path / "run", backbone=[*load(source)])  # type: ignore[arg-type]
    with pytest.raises(RetainError, match=r"got \(LlamaForCausalLM\)"):
        Learner.load(tmp_path / "run", backbone=load(source)[0])


# -- a loop of one's own

PROMPTS = [prompts_of(COPY)[0], prompts_of(CONSTANT)[0], prompts_of(COPY)[1]]


def learned(variant: str, folder: Path, backbone_folder: Folder, kind: str = "llama") -> Learner:
    learner = make_learner(variant, backbone_folder(kind), folder)
    learner.learn(COPY)
    learner.learn(CONSTANT)
    return learner


@pytest.mark.parametrize("variant", ["sapt", "amlora", "amlora-instance", "seqlora"])
def test_route_sets_what_answers_sets(
    variant: str, tmp_path: Path, backbone_folder: Folder
) -> None:
    learner = learned(variant, tmp_path / "run", backbone_folder)
    answers = learner.answers(PROMPTS)
    learner.answers(["something else"])
    weights = learner.route(PROMPTS)
    if weights is None:
        assert all(answer.routing is None for answer in answers)
    else:
        for row, answer in zip(weights, answers, strict=True):
            assert row == pytest.approx(answer.routing, abs=1e-5)
    tokenizer = learner.backbone.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    output = learner.model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=EVALUATION["max_new_tokens"],
        do_sample=False,
    )
    written = output[:, inputs["input_ids"].shape[1] :].tolist()
    texts = [learner.backbone.decode(ids) for ids in written]
    assert texts == [answer.output for answer in answers]


def test_route_by_the_tasks_name(tmp_path: Path, backbone_folder: Folder) -> None:
    learner = learned("pertask", tmp_path / "run", backbone_folder)
    with pytest.raises(RetainError, match=r"needs the task's name"):
        learner.route(PROMPTS)
    assert learner.route(PROMPTS[:1], "constant") == [{"copy": 0.0, "constant": 1.0}]
    chat = Example("hi", ("",), ({"role": "user", "content": "hi"},))
    assert learner.route([chat], "copy") == [{"copy": 1.0, "constant": 0.0}]


def test_routes_that_mean_nothing_are_refused(tmp_path: Path, backbone_folder: Folder) -> None:
    learner = make_learner("sapt-prompt", backbone_folder("llama"), tmp_path / "run")
    with pytest.raises(RetainError, match="nothing learned yet"):
        learner.route(PROMPTS)
    learner.learn(COPY)
    with pytest.raises(RetainError, match="'sapt-prompt' adds prompts to the input"):
        learner.route(PROMPTS)
    learner = learned("seqlora", tmp_path / "other", backbone_folder)
    with pytest.raises(RetainError, match="no prompts"):
        learner.route([])
    for ask in (learner.route, learner.answers, learner.generate):
        for prompts, message in (
            ("ab", "expected a list of texts, got str 'ab'"),
            (Example("ab", ("",)), "expected a list of texts, got Example"),
            (5, "expected a list of texts, got int 5"),
            ([5], "int 5 is no text"),
            (["ab", " "], "one of them is empty"),
        ):
            with pytest.raises(RetainError, match=message):
                ask(prompts)  # type: ignore[operator]
        with pytest.raises(RetainError, match="'nope': this run has not learned it; name one of c"):
            ask(["ab"], "nope")  # type: ignore[operator]
