"""Tasks of lm-evaluation-harness asked of a run, routed by their context.

A tier of its own, `make test-general`, which installs the harness.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from torch.nn.functional import log_softmax

from retain.backbone import Backbone
from retain.harness.ability import _standard_error, general_ability
from retain.harness.model import Route, RoutedLM
from retain.learner.learner import Learner
from retain.report.ability import General, general_table
from retain.system.files import write_jsonl
from retain.system.progress import Progress
from retain.testing.tiny import (
    EVALUATION,
    TRAINING,
    VARIANTS,
    make_backbone,
    make_learner,
    make_task,
)
from tests.command import call

PAIRS = [
    ("the ant is", " red"),
    ("copy this word: bear", " bear"),
    ("x", " a much longer continuation than the others have"),
    ("what colour has a fox? ", "red"),  # the space goes with the answer
    ("", "no context at all"),
]


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def plain(backbone: Backbone, size: int = 3) -> RoutedLM:
    return RoutedLM(backbone, lambda batch: None, size, Progress(), "")


def routed(learner: Learner, size: int = 3) -> RoutedLM:
    return RoutedLM(learner.backbone, learner.method.route, size, Progress(), "")


@pytest.fixture(scope="module")
def sapt(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Any) -> Learner:
    """Two tasks learned, so that there is something to route."""
    folder = tmp_path_factory.mktemp("general") / "run"
    learner = make_learner("sapt", backbone_folder("llama"), folder, max_steps=6)
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    return learner


def by_hand(backbone: Backbone, route: Route, context: str, answer: str) -> tuple[float, bool]:
    """log p of an answer from one forward of the model itself, with nothing padded."""
    tokenizer = backbone.tokenizer
    route(
        backbone.collate(
            [{"input_ids": [0], "route_ids": tokenizer(context or answer)["input_ids"]}]
        )
    )
    before = tokenizer(context.rstrip())["input_ids"] or [tokenizer.eos_token_id]
    after = tokenizer(context[len(context.rstrip()) :] + answer)["input_ids"]
    with torch.no_grad():
        if backbone.is_encoder_decoder:
            out = backbone.model(
                input_ids=torch.tensor([before]), decoder_input_ids=torch.tensor([[0, *after[:-1]]])
            ).logits[0]
        else:
            out = backbone.model(input_ids=torch.tensor([before + after])).logits[0]
            out = out[len(before) - 1 : -1]
    log_p = log_softmax(out, -1)[range(len(after)), after].sum()
    return float(log_p), out.argmax(-1).tolist() == after


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_loglikelihood_is_the_models_own(kind: str) -> None:
    backbone = make_backbone(kind)
    found = plain(backbone).loglikelihood(ask("loglikelihood", *PAIRS))
    for pair, (log_p, greedy) in zip(PAIRS, found, strict=True):
        expected = by_hand(backbone, lambda batch: None, *pair)
        assert log_p == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]


def test_what_greedy_decoding_writes_is_greedy() -> None:
    backbone = make_backbone("llama")
    model = plain(backbone)
    (answer,) = model.generate_until(ask("generate_until", ("copy:", {"max_gen_toks": 4})))
    assert len(answer) == 4
    pairs = [("copy:", answer), ("copy:", answer[::-1])]
    assert [g for _, g in model.loglikelihood(ask("loglikelihood", *pairs))] == [True, False]


def test_routing_reads_the_context(sapt: Learner) -> None:
    pairs = [
        (e.prompt, f" {e.references[0]}") for n in ("copy", "letter") for e in make_task(n).test
    ]
    found = routed(sapt).loglikelihood(ask("loglikelihood", *pairs))
    for pair, (log_p, _) in zip(pairs, found, strict=True):
        own = by_hand(sapt.backbone, sapt.method.route, *pair)[0]
        other = by_hand(sapt.backbone, lambda b: sapt.method.pool.use(None), *pair)[0]
        assert log_p == pytest.approx(own, abs=1e-3)
        assert abs(log_p - other) > 0.01  # the blocks are in it
    alone = routed(sapt, 1).loglikelihood(ask("loglikelihood", *pairs))
    assert [log_p for log_p, _ in alone] == pytest.approx([log_p for log_p, _ in found], abs=1e-3)


@pytest.mark.parametrize("variant", ["l2p", "amlora", "lfpt5"])
def test_methods_that_change_the_prompt_or_read_the_batch(variant: str, tmp_path: Path) -> None:
    learner = make_learner(variant, make_backbone("llama"), tmp_path / "run")
    learner.learn(make_task("copy"))
    pairs = [(e.prompt, f" {e.references[0]}") for e in make_task("copy").test]
    found, alone = (
        routed(learner, size).loglikelihood(ask("loglikelihood", *pairs)) for size in (4, 1)
    )
    assert [p for p, _ in found] == pytest.approx([p for p, _ in alone], abs=1e-3)
    prompts = [prompt for prompt, _ in pairs]
    count = EVALUATION["max_new_tokens"]
    asked = ask("generate_until", *((prompt, {"max_gen_toks": count}) for prompt in prompts))
    assert routed(learner).generate_until(asked) == learner.generate(prompts)


def test_answers_are_those_of_retain_generate(sapt: Learner) -> None:
    prompts = [e.prompt for n in ("copy", "letter") for e in make_task(n).test]
    options = {"max_gen_toks": EVALUATION["max_new_tokens"], "until": []}
    found = routed(sapt).generate_until(ask("generate_until", *((p, options) for p in prompts)))
    assert found == sapt.generate(prompts)


def test_answers_end_before_the_stop(sapt: Learner) -> None:
    prompts = [e.prompt for n in ("copy", "letter") for e in make_task(n).test]
    whole = sapt.generate(prompts)
    stop = whole[0][2]
    options = {"max_gen_toks": EVALUATION["max_new_tokens"], "until": [stop, ""]}
    found = routed(sapt).generate_until(ask("generate_until", *((p, options) for p in prompts)))
    assert [text.strip() for text in found] == [text.partition(stop)[0].strip() for text in whole]


def test_long_texts_are_read_in_windows() -> None:
    model = plain(make_backbone("gpt2"))  # reads 256 tokens
    texts = ["ant bear cat " * n for n in (3, 60)]
    found = model.loglikelihood_rolling(ask("loglikelihood_rolling", *((t,) for t in texts)))
    short = by_hand(model.backbone, lambda batch: None, "", texts[0])[0]
    assert found[0] == pytest.approx(short, abs=1e-3)
    assert len(texts[1]) > 3 * model.max_length - 3
    assert found[1] < 10 * found[0]  # every token counts
    (one,) = model.loglikelihood(ask("loglikelihood", (texts[1], " red")))
    assert one[0] == pytest.approx(
        by_hand(model.backbone, lambda b: None, texts[1][-(model.max_length - 4) :], " red")[0],
        abs=1e-3,
    )


# -- the command


def write_task(folder: Path, name: str, **config: Any) -> Path:
    rows = [{"q": e.prompt, "a": e.references[0]} for e in make_task("copy").train]
    write_jsonl(folder / "rows.jsonl", rows)
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{q}}",
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["ant", "bear", "cat"],
    "doc_to_target": "{{ 0 }}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITE = {
    "output_type": "generate_until",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
READ = {
    "output_type": "loglikelihood_rolling",
    "doc_to_target": "{{q}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tasks")
    kinds = {"choice": CHOICE, "write": WRITE, "read": READ}
    return [str(write_task(folder, name, **config)) for name, config in kinds.items()]


def test_the_backbone_beside_the_run(sapt: Learner, three: list[str]) -> None:
    folder = sapt.run.path
    found = {score.task: score for score in general_ability(folder, three, None, Progress())}
    assert {name: score.metric for name, score in found.items()} == {
        "choice": "acc",
        "write": "exact_match",
        "read": "bits_per_byte",
    }
    prompts = [e.prompt for e in make_task("copy").train]
    right = [
        e.references[0] == a
        for e, a in zip(make_task("copy").train, sapt.generate(prompts), strict=True)
    ]
    assert found["write"].run == pytest.approx(sum(right) / len(right))
    before = plain(make_backbone("llama"))
    texts = ask("loglikelihood_rolling", *((p,) for p in prompts))
    for score, model in ((found["read"].backbone, before), (found["read"].run, routed(sapt))):
        bits = -sum(model.loglikelihood_rolling(texts)) / sum(map(len, prompts)) / 0.6931472
        assert score == pytest.approx(bits, abs=1e-4)
    assert found["read"].run != found["read"].backbone
    assert found["read"].error is None  # a mean over bytes, not over texts
    assert found["choice"].higher_is_better is True
    assert found["choice"].error is not None


def test_the_command(sapt: Learner, three: list[str]) -> None:
    before = sorted(sapt.run.path.rglob("*"))
    done = call("eval", sapt.run.path, "--general", ",".join(three), "--limit", "4")
    assert done.status == 0, done.err
    expected = {s.task: s for s in general_ability(sapt.run.path, three, 4, Progress())}
    lines = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    for name, score in expected.items():
        assert f"{score.backbone:.3f}" in lines[name]
        assert f"{score.run:.3f}" in lines[name]
    assert sorted(sapt.run.path.rglob("*")) == before


def test_a_change_beside_its_error() -> None:
    rows = [{"doc_id": i, "filter": "none", "acc": float(i % 2)} for i in range(6)]
    other = [{**row, "acc": 1.0} for row in rows[::-1]]
    expected = stdev([1.0, 0.0] * 3) / 6**0.5
    assert _standard_error(rows, other, "acc,none", 0.5) == pytest.approx(expected)
    assert _standard_error(rows, other, "acc,none", 0.4) is None  # not what the metric is made of
    assert _standard_error(rows, other, "f1,none", 0.5) is None
    assert _standard_error(rows[:1], other[-1:], "acc,none", 1.0) is None


def test_the_table() -> None:
    scores = [
        General("hellaswag", "acc", 0.4, 0.35, 0.0123, True),
        General("wikitext", "word_perplexity", 20.0, 21.5, None, False),
    ]
    table = general_table(scores)
    cells = [list(column.cells) for column in table.columns]
    assert [str(cell) for cell in cells[0]] == ["hellaswag acc ↑", "wikitext word_perplexity ↓"]
    assert cells[1:] == [
        ["0.400", "20.000"],
        ["0.350", "21.500"],
        ["-0.050", "+1.500"],
        ["0.012", "–"],
    ]


def test_refusals(sapt: Learner, tmp_path: Path) -> None:
    broken = write_task(tmp_path, "broken", **CHOICE)
    (tmp_path / "rows.jsonl").unlink()
    other = write_task(tmp_path / "..", "unused", **CHOICE).with_name("no.yaml")
    for given, says in (
        ("", "--general: no task"),
        (
            "hellaswagg",
            "--general hellaswagg: no such file or task; use a task file, or a name that lm-eval",
        ),
        (str(other), f"--general {other}: no such file or task"),
        (str(broken), f"--general {broken}: cannot be read"),
    ):
        done = call("eval", sapt.run.path, "--general", given)
        assert (done.status, done.out) == (2, "")
        assert done.err.splitlines()[-1].startswith(f"error: {says}")


def test_a_method_that_needs_the_task(
    three: list[str], tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    learner = Learner(
        backbone_folder("llama"),
        {"name": "pertask", **VARIANTS["pertask"][1]},
        tmp_path / "run",
        training=TRAINING,
        evaluation=EVALUATION,
    )
    learner.learn(make_task("copy"))
    done = call("eval", tmp_path / "run", "--general", three[0])
    assert (done.status, done.out) == (2, "")
    assert "its method needs the task's name at inference" in done.err


def test_a_forced_first_token_is_read_and_not_asked_for() -> None:
    plain_bart = make_backbone("bart")
    plain_bart.model.generation_config.forced_bos_token_id = 2
    backbone = Backbone(plain_bart.model, plain_bart.tokenizer, "x")
    (found, _), *_ = plain(backbone).loglikelihood(ask("loglikelihood", ("the ant is", "red")))
    context, answer = (backbone.texts.plain_ids(text, True) for text in ("the ant is", "red"))
    with torch.no_grad():
        logits = backbone.model(
            input_ids=torch.tensor([context]),
            decoder_input_ids=torch.tensor([[1, 2, *answer[:-1]]]),
        ).logits[0, 1:]
    expected = log_softmax(logits, -1)[range(len(answer)), answer].sum()
    assert found == pytest.approx(float(expected), abs=1e-4)
