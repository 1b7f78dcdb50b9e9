"""Pseudo-samples beside the inputs that they imitate: the measures, and what a run says of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retain.backbone import Backbone, PromptConfig
from retain.learner.learner import Learner
from retain.methods.shared import pseudo_samples as writing
from retain.methods.shared.pseudo_diagnostics import read_samples
from retain.metrics.continual import Drop
from retain.metrics.generated import (
    Originals,
    area,
    distinct,
    duplicates,
    separability,
    spread,
)
from retain.report import render, summarise
from retain.runs import results
from retain.testing.runs import Record
from retain.testing.tiny import (
    EVALUATION,
    OPTIONS,
    TRAINING,
    make_backbone,
    make_learner,
    make_task,
)
from tests.command import call

TEXTS = st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1, max_size=12)


def texts(count: int, alphabet: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices(alphabet, k=4)) for _ in range(30)]
    return ["Classify: " + " ".join(rng.choices(words, k=12)) for _ in range(count)]


# -- the measures


def test_texts_of_one_kind_cannot_be_told_apart() -> None:
    found = [
        separability(every[:40], every[40:]) for every in (texts(240, "abcd", s) for s in range(8))
    ]
    assert sum(map(float, found)) / len(found) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("count", [5, 30])
def test_texts_of_other_letters_always_can(count: int) -> None:
    assert separability(texts(count, "abcd", 0), texts(60, "wxyz", 1)) == 1.0


def test_the_more_differs_the_better_they_are_told_apart() -> None:
    real = texts(150, "abcd", 0)
    shares = [
        separability([*texts(60, "wxyz", 1)[:changed], *real[100:][: 50 - changed]], real[:100])
        for changed in (0, 25, 50)
    ]
    assert shares == sorted(shares)
    assert 0.7 < float(shares[1]) < 0.9  # half of them always, the others half of the time


def test_few_texts_are_not_judged() -> None:
    assert separability(texts(4, "abcd", 0), texts(60, "wxyz", 1)) is None
    assert separability(texts(60, "abcd", 0), texts(4, "wxyz", 1)) is None


def test_autocast_changes_nothing() -> None:
    every = texts(60, "abcd", 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = separability(every[:20], every[20:])
    assert found == separability(every[:20], every[20:])


SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=8).map(lambda x: torch.tensor(x).float())


@given(SCORES, SCORES)
def test_area_by_counting(positive: torch.Tensor, negative: torch.Tensor) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()]
    assert area(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
    assert area(positive, negative) + area(negative, positive) == pytest.approx(1)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5), st.integers(1, 3))
def test_distinct(rows: list[list[int]], n: int) -> None:
    found = distinct(rows, n)
    if not any(len(row) >= n for row in rows):
        assert found is None
        return
    assert found is not None
    assert 0 < found <= 1
    again = distinct([*rows, *rows], n)
    assert again == pytest.approx(found / 2)  # nothing new, twice as many


@given(TEXTS)
def test_repeats(some: list[str]) -> None:
    assert duplicates(some) < len(some)
    assert duplicates([*some, *(f" {text}\n" for text in some)]) == duplicates(some) + len(some)
    assert duplicates([f"{i} {text}" for i, text in enumerate(some)]) == 0


@given(TEXTS, st.text("abc ", min_size=1).filter(str.strip), st.data())
def test_copies_are_inputs_or_their_beginnings(some: list[str], text: str, data: Any) -> None:
    originals = Originals(some)
    assert all(map(originals.has, some))
    chosen = " ".join(data.draw(st.sampled_from(some)).split())
    assert originals.has(chosen[: data.draw(st.integers(1, len(chosen)))])
    plain = " ".join(text.split())
    expected = any(" ".join(each.split()).startswith(plain) for each in some)
    assert originals.has(text) == expected
    assert not Originals([]).has(text)


@given(st.integers(0, 40), st.integers(1, 50))
def test_spread(size: int, count: int) -> None:
    found = spread(list(map(str, range(size))), count)
    assert len(found) == min(size, count)
    assert list(map(int, found)) == sorted(set(map(int, found)))


# -- in a run


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_taught_inputs_are_what_the_generator_could_write(kind: str) -> None:
    backbone = make_backbone(kind)
    rows = writing.generator_rows(backbone, make_task("copy").train, "Write:")
    expected = [example.prompt for example in make_task("copy").train]
    assert writing.taught_inputs(backbone, rows) == expected


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_generator_may_be_taught_the_answers_too(kind: str) -> None:
    backbone, train = make_backbone(kind), make_task("copy").train
    rows = writing.generator_rows(backbone, train, "Write:", answered=True)
    whole = [f"{example.prompt}__ans__{example.references[0]}" for example in train]
    assert writing.taught_inputs(backbone, rows) == whole
    inputs = [example.prompt for example in train]
    assert writing.taught_inputs(backbone, rows, answered=True) == inputs


def test_what_has_no_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone("llama")
    drawn = ["an input__ans__b", "no answer", "__ans__no input", "cut __ans__", "x__ans__y__ans__z"]
    monkeypatch.setattr(backbone, "generate", lambda *given, **sampling: drawn)

    def write(count: int, answered: bool) -> writing.Written:
        return writing.write_inputs(
            backbone, "Write:", lambda size: None, count, writing.DrawConfig(), (), "x", answered
        )

    assert write(5, False).texts == drawn
    assert write(3, True).texts == ["an input", "cut", "x"]
    drawn[:] = ["no answer"] * 3
    none = write(3, True)
    assert (none.texts, none.dropped) == ([], 0)
    assert "0 pseudo-samples instead of 3, because the generator writes texts without an " in (
        none.notice
    )


@pytest.mark.parametrize("method", ["sapt", "sapt-prompt"])
def test_the_paper_s_generator_keeps_the_inputs(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[str] = []
    plain = writing.generator_rows

    def watched(backbone: Backbone, examples: Any, trigger: str, answered: bool) -> Any:
        rows = plain(backbone, examples, trigger, answered)
        taught.extend(writing.taught_inputs(backbone, rows))
        return rows

    monkeypatch.setattr("retain.methods.sapt.method.generator_rows", watched)
    backbone = make_backbone("llama")
    generate = backbone.generate

    def drawn(batch: Any, count: int, **sampling: Any) -> list[str]:
        texts = generate(batch, count, **sampling)
        return ["ab__ans__c"] * len(texts) if sampling else texts

    monkeypatch.setattr(backbone, "generate", drawn)
    values = {"name": method, **OPTIONS[method], "preset": "paper"}
    learner = Learner(backbone, values, tmp_path, training=TRAINING, evaluation=EVALUATION)
    learner.learn(make_task("copy"))
    assert {"__ans__" in text for text in taught} == {True}
    (path,) = tmp_path.glob("tasks/*/pseudo.jsonl")
    assert {json.loads(line)["prompt"] for line in path.read_text().splitlines()} == {"ab"}


def test_lfpt5_may_keep_known_answers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = make_task("copy").train[0].references[0]
    for choice, expected in ((False, {known, "zzzz"}), (True, {known})):
        backbone = make_backbone("llama")

        def generate(batch: Any, count: int, **sampling: Any) -> list[str]:
            size = len(batch["input_ids"])
            return [f"in {i}" for i in range(size)] if sampling else [known, *["zzzz"] * (size - 1)]

        monkeypatch.setattr(backbone, "generate", generate)
        values = {
            "name": "lfpt5",
            **OPTIONS["lfpt5"],
            "replay": {"share": 0.5, "every": 1},
            "writing": {"max_new_tokens": 6, "known_answers": choice},
        }
        folder = tmp_path / str(choice)
        learner = Learner(backbone, values, folder, training=TRAINING, evaluation=EVALUATION)
        learner.learn(make_task("copy"))
        (path,) = folder.glob("tasks/*/memory.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert {row["answer"][0] for row in rows} == expected


def test_known_answers_are_those_that_the_tokenizer_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 has no line break, so no answer of it equals a label with one."""
    words = make_task("constant")
    broken = [replace(e, references=("a\nb",)) for e in (*words.train, *words.dev, *words.test)]
    task = replace(words, train=broken[:12], dev=broken[12:14], test=broken[14:])
    kept = {}
    for answer in ("a b", "a c"):
        backbone = make_backbone("llama")
        decode = backbone.tokenizer.decode

        def without_breaks(*args: Any, decode: Any = decode, **options: Any) -> str:
            return str(decode(*args, **options)).replace("\n", " ")

        def generate(batch: Any, count: int, answer: str = answer, **sampling: Any) -> list[str]:
            size = len(batch["input_ids"])
            return [f"in {i}" for i in range(size)] if sampling else [answer] * size

        monkeypatch.setattr(backbone.tokenizer, "decode", without_breaks)
        monkeypatch.setattr(backbone, "generate", generate)
        values = {**OPTIONS["lfpt5"], "writing": {"max_new_tokens": 6, "known_answers": True}}
        learner = Learner(
            backbone,
            {"name": "lfpt5", **values},
            tmp_path / answer,
            training=TRAINING,
            evaluation=EVALUATION,
            progress=(progress := Record()),
        )
        learner.learn(replace(task, metric="rouge_l"))
        (path,) = (tmp_path / answer).glob("tasks/*/memory.jsonl")
        notices = [line for line in progress.said if "pseudo-samples" in line]
        kept[answer] = (len(path.read_text().splitlines()), notices)
    assert kept["a b"] == (2, [])
    count, (notice,) = kept["a c"]
    assert count == 0
    assert "none of its 2 answers is one of the task's training answers" in notice
    assert "method.writing.known_answers=false" in notice


def learned(method: str, folder: Path, **options: Any) -> Learner:
    """Two tasks learned with pseudo-samples as many as inputs."""
    values: dict[str, Any] = {"name": method, **OPTIONS[method]}
    if method == "lfpt5":
        values["replay"] = {"share": 1.0, "every": 1}
        values["writing"] = {"max_new_tokens": 6, **options}
    else:
        values["generator"] = {"share": 1.0, "max_new_tokens": 6, **options}
    learner = Learner(
        make_backbone("llama"), values, folder, training=TRAINING, evaluation=EVALUATION
    )
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    return learner


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("tasks/*/quality.json"))]


@pytest.mark.parametrize("method", ["sapt", "sapt-prompt", "lfpt5"])
def test_a_run_says_how_good_its_pseudo_samples_are(method: str, tmp_path: Path) -> None:
    learner = learned(method, tmp_path / "run")
    run = results.open_run(tmp_path / "run")
    name = "memory.jsonl" if method == "lfpt5" else "pseudo.jsonl"
    samples = read_samples(run, name)
    measured = [own.quality for own in samples if own.quality is not None]
    assert [quality.model_dump() for quality in measured] == written(tmp_path / "run")
    for own, quality, folder in zip(samples, measured, run.learned(), strict=True):
        kept = [json.loads(line)["prompt"] for line in (folder / name).read_text().splitlines()]
        assert own.count == len(kept)
        assert quality.duplicates == len(kept) - len({" ".join(k.split()) for k in kept})
        inputs = [example.prompt for example in make_task(own.task).train]
        assert quality.auc == separability(kept, inputs)
    first, last = learner.scores["matrix"]
    assert samples[0].lost == Drop(first[0] - last[0])
    shown = call("inspect", tmp_path / "run")
    assert shown.status == 0, shown.err
    assert f"{measured[0].auc:.2f}" in shown.out
    assert f"Pseudo-samples: {sum(own.count for own in samples)}; they imitate" in shown.out
    page = render([summarise(tmp_path / "run")])
    assert "<h3>Pseudo-samples</h3>" in page
    assert f"<td>{samples[0].count}</td>" in page


def copying(backbone: Backbone, monkeypatch: pytest.MonkeyPatch, own: int) -> None:
    """A generator that writes the beginnings of training inputs, and `own` texts a batch else."""
    inputs = [
        example.prompt[:8] for name in ("copy", "letter") for example in make_task(name).train
    ]
    plain = backbone.generate

    def generate(batch: Any, count: int, **sampling: Any) -> list[str]:
        if not sampling:
            return plain(batch, count)
        size = len(batch["input_ids"])
        return [*(f"zz {i}" for i in range(min(own, size))), *inputs[: max(0, size - own)]]

    monkeypatch.setattr(backbone, "generate", generate)


def draw(backbone: Backbone, drop: bool) -> writing.Written:
    task = make_task("copy")
    taught = [example.prompt for example in task.train]
    options = writing.DrawConfig(drop_copies=drop)
    return writing.write_inputs(backbone, "Write:", lambda size: None, 8, options, taught, "x")


def test_copies_are_counted_or_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone("llama")
    taught = [example.prompt for example in make_task("copy").train]
    copying(backbone, monkeypatch, own=3)
    kept, dropped = draw(backbone, drop=False), draw(backbone, drop=True)
    assert sum(map(Originals(taught).has, kept.texts)) == 5
    assert not any(map(Originals(taught).has, dropped.texts))
    assert (kept.dropped, len(dropped.texts)) == (0, 8)
    assert dropped.dropped == 5 + 2  # of 8, of 5, and of 2 that were drawn
    for case, count in ((kept, 5), (dropped, 0)):
        writing.write_quality(tmp_path, backbone, case.texts, case.dropped, taught)
        found = json.loads((tmp_path / "quality.json").read_text())
        assert (found["copies"], found["dropped"]) == (count, case.dropped)


def test_a_generator_of_nothing_but_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone("llama")
    copying(backbone, monkeypatch, own=0)
    assert len(draw(backbone, drop=False).texts) == 8
    written = draw(backbone, drop=True)
    assert written.texts == []
    assert "0 pseudo-samples instead of 8, because the generator writes copies" in written.notice


@pytest.mark.parametrize("method", ["sapt", "sapt-prompt", "lfpt5"])
@pytest.mark.parametrize("empty", ["inputs", "answers"])
def test_what_is_drawn_empty_does_not_end_the_run(
    method: str, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, progress = make_backbone("llama"), Record()
    learner = make_learner(method, backbone, tmp_path, progress, max_steps=1)
    plain = backbone.generate

    def generate(batch: Any, count: int, **sampling: Any) -> list[str]:
        written = plain(batch, count, **sampling)
        return ["" for _ in written] if bool(sampling) == (empty == "inputs") else written

    monkeypatch.setattr(backbone, "generate", generate)
    for name in ("copy", "constant"):
        learner.learn(make_task(name))
    warned = [line for line in progress.said if "pseudo-samples" in line and "warning" in line]
    assert len(warned) == (2 if empty == "inputs" or method == "lfpt5" else 0)
    again = Learner.load(tmp_path, backbone=make_backbone("llama"))
    assert again.scores == learner.scores
    type(again.method).diagnostics(again.run, None)


def test_inputs_that_the_chat_template_refuses_do_not_end_the_run(tmp_path: Path) -> None:
    """Drawn inputs are random letters, which a template may refuse where it takes the task's."""
    backbone, progress = make_backbone("llama"), Record()
    backbone.prompt = PromptConfig(chat_template=True)
    backbone.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' and m.content[:4] not in ['copy', 'Writ'] %}"
        "{{ raise_exception('no') }}{% endif %}{{ m.content }}\n{% endfor %}"
    )
    learner = make_learner("lfpt5", backbone, tmp_path, progress, max_steps=1)
    learner.learn(make_task("copy"))
    (line,) = [line for line in progress.said if "pseudo-samples" in line]
    assert "the prompt answers none of the 2 inputs that it wrote" in line


@pytest.mark.parametrize("method", ["sapt", "lfpt5"])
def test_a_narrow_window_does_not_end_the_run(method: str, tmp_path: Path) -> None:
    backbone = make_backbone("gpt2")
    backbone.window = 45  # a trigger and 128 new tokens, the default, are more
    options = dict(OPTIONS[method])
    options["writing" if method == "lfpt5" else "generator"] = {}
    learner = Learner(
        backbone, {"name": method, **options}, tmp_path, training=TRAINING, evaluation=EVALUATION
    )
    learner.learn(make_task("copy"))
    learner.learn(make_task("constant"))


@pytest.mark.parametrize("method", ["sapt", "lfpt5"])
def test_the_option_reaches_the_run(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(given: list[str]) -> Originals:
        seen.append(len(given))
        return Originals(given)

    monkeypatch.setattr(writing.generated, "Originals", watched)
    learned(method, tmp_path / "run", drop_copies=True)
    assert seen == [12, 12] * 2  # when drawn, and when measured, of each task


def test_real_inputs_are_not_measured(tmp_path: Path) -> None:
    values = {"name": "sapt", **OPTIONS["sapt"], "reflection": {"samples": "real"}}
    learner = Learner(make_backbone("llama"), values, tmp_path / "run", training=TRAINING)
    learner.learn(make_task("copy"))
    assert written(tmp_path / "run") == []
    done = call("inspect", tmp_path / "run")
    assert done.status == 0, done.err
    assert "they are training inputs" in done.out


def test_no_picture_of_pseudo_samples(tmp_path: Path) -> None:
    learned("lfpt5", tmp_path / "run")
    done = call("inspect", tmp_path / "run", "--picture", tmp_path / "x.png")
    assert done.status == 2
    assert done.err == "error: inspect: this run's method has no picture; leave --picture out\n"
