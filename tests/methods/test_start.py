"""`start`: which block a new one copies, and that it does so bit for bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from retain.errors import RetainError
from retain.layers.lora_pool import ADAPTER
from retain.learner.learner import Learner
from retain.learner.upkeep import roll_back
from retain.methods.sapt import start as start_module
from retain.methods.sapt.diagnostics import sapt_diagnostics
from retain.methods.sapt.method import Attentive, Sapt
from retain.methods.sapt.start import START, Start
from retain.methods.sapt.whitened import WhitenedRouter
from retain.runs.records import read_record
from retain.system.files import read_tensors
from retain.system.progress import Progress
from retain.tasks import Example, Task
from retain.testing.tiny import TRAINING, context_of, make_backbone, make_learner, make_task
from tests.methods.test_whitened import naive_embedding

METHODS = {"sapt": {}, "sapt-prompt": {"length": 3, "rate": 1.0}}
NEAREST: dict[str, Any] = {"router": {"kind": "whitened"}, "start": "nearest"}
LOWEST = {**NEAREST, "start": "lowest_loss"}
NAMES = ("copy", "constant", "letter")


class Heard(Progress):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def learner_of(
    folder: Path, method: str = "sapt", above: float = -1.0, progress: Progress | None = None
) -> Learner:
    options = {"name": method, **METHODS[method], **NEAREST, "start_above": above}
    return Learner(make_backbone("llama"), options, folder, training=TRAINING, progress=progress)


def factors(learner: Learner) -> dict[str, Tensor]:
    """The trainable block before its first step."""
    assert isinstance(learner.method, Attentive)
    return {name: p.detach().clone() for name, p in learner.method.pool.named_parameters().items()}


def begun(learner: Learner, task: Task, folder: Path) -> tuple[dict[str, Tensor], Start]:
    """The block with which a task's phase begins, and what it began as."""
    assert isinstance(learner.method, Attentive)
    index = len(learner.tasks)
    next(iter(learner.method.phases(task, context_of(task, folder, index, seed=7))))
    return factors(learner), learner.method._began


def block_of(learner: Learner, index: int) -> list[Tensor]:
    stored = read_tensors(learner.run.learned()[index] / ADAPTER)
    return sorted(stored.values(), key=lambda tensor: (tensor.shape, tensor.sum().item()))


def is_block(factors: dict[str, Tensor], block: list[Tensor]) -> bool:
    ours = sorted(factors.values(), key=lambda tensor: (tensor.shape, tensor.sum().item()))
    return all(torch.equal(a, b) for a, b in zip(ours, block, strict=True))


def naive_cosines(learner: Learner, tasks: list[Task]) -> list[float]:
    """Whitened cosines of the last task's mean with those of the others, by a dense inverse."""
    assert isinstance(learner.method, Attentive)
    router = learner.method.router
    assert isinstance(router, WhitenedRouter)
    backbone = learner.backbone
    means = []
    for task in tasks:
        rows = [backbone.texts.plain_ids(example.prompt) for example in task.train]
        e = torch.stack([naive_embedding(backbone, row) for row in rows])
        means.append(((e - router.centre.double()) / router.spread.double()).mean(0))
    covariance = router._scatter / router._freedom  # test_whitened.py has these naively
    level = covariance.diagonal().mean() * torch.eye(len(covariance)).double()
    metric = torch.linalg.inv(0.9 * covariance + 0.1 * level)

    def inner(a: Tensor, b: Tensor) -> float:
        return float(a @ metric @ b)

    new = means[-1]
    return [inner(m, new) / (inner(m, m) * inner(new, new)) ** 0.5 for m in means[:-1]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("like", NAMES)
def test_a_block_begins_as_the_bits_of_the_nearest(method: str, like: str, tmp_path: Path) -> None:
    learner = learner_of(tmp_path / "run", method)
    tasks = [make_task(name) for name in NAMES]
    for task in tasks:
        learner.learn(task)
    rows = [Example(row.prompt + " again", row.references) for row in make_task(like).train]
    new = Task("new", rows, rows[:2], rows[:2])
    block, start = begun(learner, new, tmp_path)
    cosines = naive_cosines(learner, [*tasks, new])
    index = NAMES.index(like)
    assert max(cosines) == pytest.approx(cosines[index])
    assert (start.nearest, start.copied) == (like, True)
    assert start.cosine == pytest.approx(cosines[index], abs=1e-4)
    assert [is_block(block, block_of(learner, i)) for i in range(3)] == [
        i == index for i in range(3)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_below_the_threshold_it_begins_fresh(method: str, tmp_path: Path) -> None:
    learner, usual = learner_of(tmp_path / "run", method, 0.999), learner_of(tmp_path / "b", method)
    learner.learn(make_task("copy"))
    block, start = begun(learner, make_task("letter"), tmp_path)
    assert (start.nearest, start.copied) == ("copy", False)
    first, none = begun(usual, make_task("letter"), tmp_path)  # no task to copy from
    assert none == Start()
    assert block.keys() == first.keys()
    assert all(torch.equal(block[name], first[name]) for name in block)


def test_equally_near_tasks_give_the_oldest(tmp_path: Path) -> None:
    learner = learner_of(tmp_path / "run")
    for name in ("one", "two"):
        learner.learn(replace(make_task("copy"), name=name))
    _, start = begun(learner, replace(make_task("copy"), name="three"), tmp_path)
    assert start.nearest == "one"
    assert start.cosine == pytest.approx(1)


def test_the_run_says_what_each_block_began_as(tmp_path: Path) -> None:
    heard = Heard()
    learner = learner_of(tmp_path / "run", progress=heard)
    for name in NAMES[:2]:
        learner.learn(make_task(name))
    folders = learner.run.learned()
    starts = [read_record(Start, folder / START) for folder in folders]
    assert starts[0] == Start()
    assert (starts[1].nearest, starts[1].copied) == ("copy", True)
    assert starts[1].cosine is not None
    said = f"cosine {starts[1].cosine:.2f}: the block begins as a copy of that task's"
    assert [line for line in heard.lines if "nearest" in line] == [
        f"constant: nearest task 'copy', {said}"
    ]
    assert all(learner.run.is_committed(folder / START) for folder in folders)
    (section,) = [s for s in sapt_diagnostics(learner.run) if "began" in s.title]
    assert [(label, *cells) for label, cells in section.grids[0].rows] == [
        ("copy", "–", "–", "–", "–", "fresh"),
        ("constant", "copy", f"{starts[1].cosine:.2f}", "–", "–", "a copy"),
    ]


def test_without_it_nothing_is_recorded(tmp_path: Path) -> None:
    learner = make_learner("sapt-whitened", make_backbone("llama"), tmp_path / "run")
    learner.learn(make_task("copy"))
    assert not (learner.run.learned()[0] / START).exists()
    assert not [s for s in sapt_diagnostics(learner.run) if "began" in s.title]


def lowest_loss_learner(folder: Path, method: str, progress: Progress | None = None) -> Learner:
    options = {"name": method, **METHODS[method], **LOWEST}
    return Learner(make_backbone("llama"), options, folder, training=TRAINING, progress=progress)


def naive_loss(learner: Learner, task: Task, index: int) -> float:
    """The loss on the task's answers with one block, prompt by prompt, by the mixture of all."""
    assert isinstance(learner.method, Attentive)
    pool, backbone = learner.method.pool, learner.backbone
    weights = torch.eye(len(pool.blocks))[index : index + 1]
    total = tokens = 0
    for example in task.train:
        batch = backbone.collate([backbone.encode(example)])
        pool.use(weights)
        with torch.no_grad():
            logits, labels = backbone.answer_logits(batch)
        chosen = logits[labels != -100].double().log_softmax(-1)
        answer = labels[labels != -100]
        total -= chosen[torch.arange(len(answer)), answer].sum().item()
        tokens += len(answer)
    return total / tokens


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("like", NAMES)
def test_a_block_begins_as_that_of_the_lowest_loss(method: str, like: str, tmp_path: Path) -> None:
    heard = Heard()
    learner = lowest_loss_learner(tmp_path / "run", method, heard)
    for name in NAMES:
        learner.learn(make_task(name))
    rows = [Example(row.prompt + " again", row.references) for row in make_task(like).train[:8]]
    new = Task("new", rows, rows[:2], rows[:2])
    block, start = begun(learner, new, tmp_path)
    assert isinstance(learner.method, Attentive)
    learner.method.pool.restart(7)
    losses = [naive_loss(learner, new, index) for index in range(4)]
    index = losses.index(min(losses[:3]))
    assert start.nearest == NAMES[index]
    assert start.loss == pytest.approx(losses[index], rel=1e-4)
    assert start.fresh_loss == pytest.approx(losses[3], rel=1e-4)
    assert start.copied is (losses[index] < losses[3])
    assert [is_block(block, block_of(learner, i)) for i in range(3)] == [
        start.copied and i == index for i in range(3)
    ]


def test_a_block_that_answers_worse_is_not_copied(tmp_path: Path) -> None:
    learner = lowest_loss_learner(tmp_path / "run", "sapt")
    learner.learn(make_task("constant"))
    assert isinstance(learner.method, Sapt)
    for layer in learner.method.pool.layers.values():
        layer.old_B.mul_(-100)
    block, start = begun(learner, make_task("letter"), tmp_path)
    assert start.loss is not None
    assert start.fresh_loss is not None
    assert start.loss > start.fresh_loss
    assert (start.nearest, start.copied) == ("constant", False)
    assert all(not factor.any() for name, factor in block.items() if name.endswith(".B"))


def test_a_block_without_a_loss_is_named(tmp_path: Path) -> None:
    learner = lowest_loss_learner(tmp_path / "run", "sapt")
    learner.learn(make_task("constant"))
    assert isinstance(learner.method, Sapt)
    next(iter(learner.method.pool.layers.values())).old_B.fill_(torch.nan)
    with pytest.raises(RetainError, match="task 'letter': the block of 'constant' gives a loss of"):
        begun(learner, make_task("letter"), tmp_path)


def test_only_the_nearest_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = lowest_loss_learner(tmp_path / "run", "sapt")
    tasks = [make_task(name) for name in NAMES]
    for task in tasks:
        learner.learn(task)
    assert isinstance(learner.method, Attentive)
    use_block, used = learner.method.pool.use_block, set()

    def record(size: int, index: int) -> None:
        used.add(index)
        use_block(size, index)

    monkeypatch.setattr(learner.method.pool, "use_block", record)
    monkeypatch.setattr(start_module, "TRIED", 2)
    new = replace(make_task("letter"), name="new")
    begun(learner, new, tmp_path)
    cosines = naive_cosines(learner, [*tasks, new])
    assert used == {0, 1, 2, 3} - {cosines.index(min(cosines))}  # 3 is the fresh one


class Stop(TrainerCallback):
    """Ends the process's training at the second step, as a kill does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = learner_of(tmp_path / "whole")
    whole.learn(make_task("copy"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    whole.learn(make_task("letter"))
    cut = Learner.load(tmp_path / "cut", backbone=make_backbone("llama"), callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        cut.learn(make_task("letter"))
    again = Learner.load(tmp_path / "cut", backbone=make_backbone("llama"))
    again.learn(make_task("letter"))
    for path in sorted((tmp_path / "whole" / "tasks").rglob("*.safetensors")):
        assert (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes() == (
            path.read_bytes()
        )
    for folder in whole.run.learned():
        other = tmp_path / "cut" / folder.relative_to(tmp_path / "whole")
        assert (folder / START).read_bytes() == (other / START).read_bytes()


def test_a_rolled_back_task_is_no_start(tmp_path: Path) -> None:
    learner = learner_of(tmp_path / "run")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    roll_back(tmp_path / "run", "copy")
    again = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    rows = make_task("letter").train
    _, start = begun(again, Task("new", rows, rows[:2], rows[:2]), tmp_path)
    assert start.nearest == "copy"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"router": {"kind": "attention"}, "start": "nearest"}, "router.kind: whitened"),
        ({"preset": "paper", "start": "nearest"}, "router.kind: whitened"),
        ({**NEAREST, "start_above": 1.5}, "start_above"),
        ({"start_above": 0.5}, "start_above is for start: nearest; set that"),
        ({**LOWEST, "start_above": 0.5}, "start_above is for start: nearest; set that"),
        ({"router": {"kind": "attention"}, "start": "lowest_loss"}, "start: lowest_loss compares"),
        ({**NEAREST, "start": "oldest"}, "'fresh', 'nearest' or 'lowest_loss'"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_is_refused_in_one_line(
    method: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RetainError, match=says) as refused:
        Learner(make_backbone("llama"), {"name": method, **options}, tmp_path / "run")
    assert "\n" not in str(refused.value)
    print(refused.value)
    assert not (tmp_path / "run").exists()


def test_pertask_has_no_such_option(tmp_path: Path) -> None:
    with pytest.raises(RetainError, match="start"):
        Learner(make_backbone("llama"), {"name": "pertask", "start": "nearest"}, tmp_path / "run")
