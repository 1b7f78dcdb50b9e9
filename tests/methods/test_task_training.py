"""A task may have training settings of its own, and a length of its answers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain import RetainError, load_stream
from retain.backbone import Backbone
from retain.learner.learner import Learner
from retain.runs import results
from retain.system.files import read_json, read_jsonl
from retain.tasks import Task
from retain.testing.tiny import (
    EVALUATION,
    TRAINING,
    make_backbone,
    make_learner,
    make_task,
    save_backbone,
)
from retain.training.trainer import PhaseTrainer
from tests.command import call, settings, write_settings, write_tasks

FIRST, SECOND, THIRD = make_task("copy"), make_task("constant"), make_task("letter")
USUAL = EVALUATION["max_new_tokens"]
OWN = USUAL + 4


def test_they_are_for_this_task_only(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run")
    own = {"max_steps": 3, "learning_rate": 0.5, "lr_scheduler_type": "constant"}
    for task in (FIRST, replace(SECOND, training=own), THIRD):
        learner.learn(task)
    logs = [read_jsonl(path / "training.jsonl") for path in learner.run.learned()]
    usual = learner.experiment.training
    assert [len(log) for log in logs] == [usual.max_steps, 3, usual.max_steps]
    assert [row["learning_rate"] for row in logs[1]] == [0.5] * 3
    assert max(row["learning_rate"] for row in logs[2]) <= usual.learning_rate < 0.5
    records = [read_json(path / "task.json")["training"] for path in learner.run.learned()]
    assert records == [{}, own, {}]


@pytest.mark.parametrize(
    ("method", "own", "says"),
    [
        ("seqlora", {"rate": 1}, "unknown field 'training.rate'"),
        ("seqlora", {"learning_rate": -1}, "field 'training.learning_rate': .*greater than 0"),
        ("multitask", {"max_steps": 1}, "cannot have 'training' of its own where tasks are"),
    ],
)
def test_bad_ones_are_refused_before_anything_is_learned(
    method: str, own: dict[str, float], says: str, tmp_path: Path
) -> None:
    learner = make_learner(method, make_backbone("llama"), tmp_path / "run")
    with pytest.raises(RetainError, match=f"task 'constant': {says}"):
        learner.check_tasks([FIRST, replace(SECOND, training=own)])


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each batch that is answered, the most tokens that its answers may have."""
    found = []
    generate = Backbone.generate

    def noted(self: Backbone, batch: Any, max_new_tokens: int, **options: Any) -> list[str]:
        found.append(max_new_tokens)
        return generate(self, batch, max_new_tokens, **options)

    monkeypatch.setattr(Backbone, "generate", noted)
    return found


def begun(method: str, folder: Path, **evaluation: Any) -> Learner:
    """A run whose evaluations take one batch each."""
    training = {**TRAINING, "max_steps": 1}
    backbone, evaluation = make_backbone("llama"), {**EVALUATION, "batch_size": 9, **evaluation}
    return Learner(backbone, method, folder, training=training, evaluation=evaluation)


@pytest.mark.parametrize("own", [OWN, USUAL - 1])
def test_an_own_length_is_for_the_task_s_own_cells(
    own: int, lengths: list[int], tmp_path: Path
) -> None:
    learner = begun("seqlora", tmp_path / "run", zero_shot=True)
    learner.learn(FIRST)
    learner.learn(replace(SECOND, metric="rouge_l", max_new_tokens=own))
    zero_shot = [USUAL, own]
    assert lengths == [zero_shot[0], USUAL, zero_shot[1], USUAL, own]
    loaded = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    for learned in (learner, loaded):
        lengths.clear()
        learned.evaluate()
        assert lengths == [USUAL, own]
        lengths.clear()
        learned.generate(["whose task is this?"])
        assert lengths == [max(USUAL, own)]
    lengths.clear()
    loaded.learn(THIRD)
    assert lengths == [USUAL, USUAL, own, USUAL]
    records = [read_json(path / "task.json")["max_new_tokens"] for path in loaded.run.learned()]
    assert records == [None, own, None]


def test_scores_under_other_lengths_are_told_apart(tmp_path: Path) -> None:
    own = replace(FIRST, max_new_tokens=OWN)
    usual, longer, long = (
        begun("pertask", tmp_path / "usual"),
        begun("pertask", tmp_path / "longer"),
        begun("pertask", tmp_path / "long", max_new_tokens=OWN),
    )
    for learner, task in ((usual, FIRST), (longer, own), (long, FIRST)):
        learner.learn(task)
    assert results.single_scores(longer.run, long.run.path) == [long.scores["matrix"][0][0]]
    with pytest.raises(RetainError, match=r"usual: has no task 'copy' with the same .* length"):
        results.single_scores(longer.run, usual.run.path)


def test_a_stream_and_a_file_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    (task,) = load_stream([{"path": "copy.jsonl", "max_new_tokens": 60}])
    alike = Task.from_jsonl("copy.jsonl", max_new_tokens=60)
    assert (task.max_new_tokens, alike.max_new_tokens) == (60, 60)
    with pytest.raises(
        RetainError, match=r"load_stream, task 1: field 'max_new_tokens': .* greater than 0"
    ):
        load_stream([{"path": "copy.jsonl", "max_new_tokens": 0}])
    with pytest.raises(RetainError, match="task 'copy': max_new_tokens is 0; give it 1 or more"):
        replace(FIRST, max_new_tokens=0)


def test_the_advice_for_longer_answers_leads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    values = settings(save_backbone("llama", tmp_path / "backbone"), "letter")
    values["evaluation"] = {"max_new_tokens": 2}
    write_settings(Path("exp.yaml"), values)
    assert call("run", "exp.yaml").status == 0
    refusal = call("learn", "out", "copy.jsonl").err
    advice = re.search(r"no test answer fits .* \(retain learn … (--set \S+)\)", refusal)
    assert advice, refusal
    done = call("learn", "out", "copy.jsonl", *advice[1].split())
    assert (done.status, "test answers are longer" in done.err) == (0, False), done.err
    done = call("run", "exp.yaml", "--resume")  # the longer run is still this experiment's
    assert done.status == 0, done.err


def test_adam_s_numbers_are_those_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    built = PhaseTrainer.create_optimizer

    def build(trainer: PhaseTrainer, model: Any = None) -> Any:
        optimizer = built(trainer, model)
        used.append((optimizer.defaults["betas"], optimizer.defaults["eps"]))
        return optimizer

    monkeypatch.setattr(PhaseTrainer, "create_optimizer", build)
    more = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    make_learner("seqlora", make_backbone("llama"), tmp_path / "run", **more).learn(FIRST)
    make_learner("seqlora", make_backbone("llama"), tmp_path / "other").learn(FIRST)
    assert used == [((0.8, 0.95), 1e-6), ((0.9, 0.999), 1e-8)]
