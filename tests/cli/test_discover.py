"""`retain learn RUN FILE --discover`: what it writes, asks, refuses, and how it goes on."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from retain.discovery.decision import (
    Known,
    decide,
    folder_of,
    stored_decision,
    tasks_to_learn,
)
from retain.errors import RetainError
from retain.experiment.config import TaskConfig
from retain.learner.learner import Learner
from retain.learner.lesson import fit
from retain.system.files import read_jsonl, write_jsonl
from retain.tasks import Example
from retain.testing.tiny import WORDS as ANIMALS
from retain.testing.tiny import read_files
from tests.command import call, refused
from tests.mixed import mixed_rows

AGAIN = [Example(f"copy this word: {word}s", (f"{word}s",)) for word in ANIMALS.split()]
"""More of the task that the run has learned."""


@pytest.fixture
def copied(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run `run`, and `mixed.jsonl` of two new tasks, the learned one and a stray."""
    folder = tmp_path / "copied"
    shutil.copytree(learned, folder)
    rows = [*mixed_rows(0, 24), *mixed_rows(3, 20), *AGAIN, *mixed_rows(2, 1)]
    random.Random(0).shuffle(rows)
    write_jsonl(folder / "mixed.jsonl", (row.as_row() for row in rows))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name(copied: Path, path: str) -> None:
    refused("learn", "run", path, "--discover", "--yes", says=["name a file"])


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(name, fail)


def learn(*more: str) -> Any:
    return call("learn", "run", "mixed.jsonl", "--discover", "--set", "training.max_steps=1", *more)


def stored() -> Any:
    return json.loads(Path("mixed.discovered/decision.json").read_bytes())


def test_it_learns_each_group_and_goes_on_with_what_it_decided(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr("retain.learner.lesson.fit", interrupted)
    killed = learn("--yes")
    assert killed.status not in (0, 2), killed
    decision = stored()
    new = [group for group in decision["groups"] if group["learn"]]
    (left,) = [group for group in decision["groups"] if not group["learn"]]
    assert [group["rows"] for group in new] == [24, 20]
    assert (left["nearest"], left["rows"], decision["buffer"]) == ("copy", len(AGAIN), 1)
    assert f"{new[0]['name']}:\n  " in killed.out
    assert "left out: learned already" in killed.out
    written = [
        json.dumps(row)
        for path in Path("mixed.discovered").glob("*.jsonl")
        for row in read_jsonl(path)
    ]
    given = [json.dumps(row) for row in read_jsonl(Path("mixed.jsonl"))]
    assert sorted(written) == sorted(given)

    before = read_files(Path("mixed.discovered"))
    forbid(monkeypatch, "retain.discovery.decision.group_texts")
    resumed = learn("--yes")
    assert resumed.status == 0, resumed.err
    assert calls == 3  # the second again, and not the first
    assert read_files(Path("mixed.discovered")) == before
    names = [task.name for task in Learner.load("run").tasks]
    assert names == ["copy", *(group["name"] for group in new)]
    once_more = learn("--yes")
    assert (once_more.status, calls) == (0, 3)
    assert "nothing to learn" in once_more.out
    # Any group's file is a task that can be learned alone.
    alone = call("learn", "pertask", f"mixed.discovered/{new[0]['file']}", "--name", "alone")
    assert alone.status == 0, alone.err


def test_it_asks_and_names_may_be_changed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retain.cli.discovering._has_terminal", lambda: True)
    forbid(monkeypatch, "retain.learner.lesson.fit")
    run = read_files(Path("run"))
    command = ("learn", "run", "mixed.jsonl", "--discover")
    done = call(*command, stdin=b"n\n")
    assert done.status == 0, done.err
    assert "Learn 2 tasks?" in done.out
    assert "nothing learned" in done.out
    assert read_files(Path("run")) == run
    decision = stored()
    decision["groups"][0].update(name="sums")
    decision["groups"][1]["learn"] = False
    Path("mixed.discovered/decision.json").write_text(json.dumps(decision), encoding="utf-8")
    done = call(*command, stdin=b"n\n")
    assert "as decided in mixed.discovered" in done.out
    assert "Learn 1 task?" in done.out
    assert "sums:\n" in done.out
    assert read_files(Path("run")) == run


@pytest.mark.parametrize(("known", "keeps"), [("refresh", True), ("block", False)])
def test_what_a_task_keeps_that_is_learned_again_is_said(
    copied: Path, known: Known, keeps: bool
) -> None:
    write_jsonl(Path("mixed.jsonl"), [row.as_row() for row in (*AGAIN, *mixed_rows(2, 20))])
    options = ("--discover", "--yes", "--known", known, "--set", "metric=rouge_l")
    done = call("learn", "run", "mixed.jsonl", *options)
    assert ("groups that are learned again keep metric of the learned task" in done.out) == keeps


@pytest.mark.parametrize("known", ["refresh", "block"])
def test_examples_of_a_learned_task(copied: Path, known: Known) -> None:
    learner, config = Learner.load("run"), TaskConfig(path="mixed.jsonl", metric="rouge_l")
    rows = [*AGAIN, *mixed_rows(2, 20)]
    decision = decide(learner, rows, known, Path("mixed.jsonl"))
    tasks = {task.name: task for task in tasks_to_learn(learner, decision, config)}
    assert len(tasks) == 2
    again = tasks["copy-2"]
    parts = (again.train, again.dev) if known == "refresh" else (again.train, again.dev, again.test)
    assert {row for part in parts for row in part} == set(AGAIN)
    if known == "refresh":
        assert list(again.test) == list(learner.tasks[0].test)
    assert again.metric == ("exact_match" if known == "refresh" else "rouge_l")
    assert stored_decision(Path("mixed.jsonl"), rows, known) == decision
    others: list[tuple[list[Example], Known, str]] = [
        (rows[1:], known, r"restore those of mixed\.jsonl"),
        (rows, "skip", f"give --known {known} again"),
    ]
    for other, kind, advice in others:
        says = rf"was decided .*; delete mixed.discovered .*, or {advice}$"
        with pytest.raises(RetainError, match=says):
            stored_decision(Path("mixed.jsonl"), other, kind)
    learner.tasks.pop()
    with pytest.raises(RetainError, match=r"is for a run that learns copy, .* give its groups"):
        tasks_to_learn(learner, decision, config)


def test_a_refresh_learns_no_test_of_the_task(copied: Path) -> None:
    learner, config = Learner.load("run"), TaskConfig(path="mixed.jsonl", train_limit=5)
    tests = list(learner.tasks[0].test)
    decision = decide(learner, [*AGAIN, *tests], "refresh", Path("mixed.jsonl"))
    (again,) = tasks_to_learn(learner, decision, config)
    assert len(again.train) == 5
    assert {*again.train, *again.dev} <= set(AGAIN)
    assert list(again.test) == tests
    write_jsonl(Path("mixed.discovered") / decision.groups[0].file, (row.as_row() for row in tests))
    with pytest.raises(RetainError, match="tests of 'copy' alone"):
        tasks_to_learn(learner, decision, config)


def test_a_group_has_a_name(copied: Path) -> None:
    rows = [*mixed_rows(0, 9)]
    decide(Learner.load("run"), rows, "skip", Path("mixed.jsonl"))
    decision = stored()
    decision["groups"][0]["name"] = " "
    Path("mixed.discovered/decision.json").write_text(json.dumps(decision), encoding="utf-8")
    with pytest.raises(RetainError, match="a group has no name; give it one"):
        stored_decision(Path("mixed.jsonl"), rows, "skip")


def test_it_says_what_it_is_not_sure_of(copied: Path) -> None:
    rows = [*mixed_rows(1, 9), *mixed_rows(0, 30), *mixed_rows(2, 7)]
    decision = decide(Learner.load("run"), rows, "skip", Path("mixed.jsonl"))
    assert [group.rows for group in decision.groups] == [30, 9]
    small = decision.groups[1].name
    assert f"{small} has only 9 examples, a fifth of them for its score" in decision.unsure
    assert any(line.startswith("7 of 46 examples match no group") for line in decision.unsure)


@pytest.mark.parametrize(
    ("prompt", "is_told"),
    [
        ("Ist das eine Frage?\nText: Der Zug {} hat Verspätung.", True),
        ("Is it a question?\nText: The train {} is late.", False),
        ("{}", False),  # no words
    ],
)
def test_it_says_that_other_languages_are_not_told_apart(
    copied: Path, prompt: str, is_told: bool
) -> None:
    rows = [Example(prompt.format(i), ("12",)) for i in range(9)]
    decision = decide(Learner.load("run"), rows, "skip", Path("mixed.jsonl"))
    told = [line for line in decision.unsure if "has few common English words (" in line]
    assert [line.split()[0] for line in told] == [
        group.name for group in decision.groups if is_told
    ]
    assert decision.groups


def test_bad_input_is_refused_before_anything_is_loaded(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "retain.learner.learner.Learner.load")
    write_jsonl(Path("plain.jsonl"), [{"prompt": "a"}] * 9)
    write_jsonl(Path("few.jsonl"), [row.as_row() for row in mixed_rows(0, 7)])
    shutil.copy("mixed.jsonl", "run/mixed.jsonl")

    def wrong(file: str, *more: str, says: list[str]) -> None:
        refused("learn", "run", file, "--discover", *more, says=says)

    wrong("plain.jsonl", "--yes", says=["plain.jsonl, line 1: no field 'answer'"])
    wrong("none.jsonl", "--yes", says=["none.jsonl: no such file"])
    few = "has 7 examples, and a group has 8 or more"
    wrong("few.jsonl", "--yes", says=[few])
    wrong("few.jsonl", "--yes", "--set", "metric=rouge_l", says=[few])
    wrong("run/mixed.jsonl", "--yes", says=["lies in the run"])
    wrong("mixed.jsonl", says=["no terminal to ask; add --yes"])
    wrong("mixed.jsonl", "--yes", "--name", "x", says=["takes no --name"])
    wrong("mixed.jsonl", "--yes", "--test", "few.jsonl", says=["takes no --name and no --test"])
    wrong("mixed.jsonl", "--yes", "--set", "reader=hub", says=["--set reader=hub: is not for all"])
    refused("learn", "run", "mixed.jsonl", "--yes", says=["--yes", "--discover"])
    refused("learn", "run", "mixed.jsonl", "--known", "block", says=["--known", "--discover"])


def test_a_decision_stays_beside_its_file() -> None:
    assert folder_of(Path("a/mixed.v2.jsonl")) == Path("a/mixed.v2.discovered")
