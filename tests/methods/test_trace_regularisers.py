"""EWC and LwF as TRACE has them, against the naive formulas on the micro-batches of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.methods.ewc import Ewc
from retain.methods.lwf import Lwf
from retain.methods.shared.teacher import (
    TeacherConfig,
    compressed,
    reverse_divergence,
    stacked,
)
from retain.testing.test_accumulation import uneven
from retain.testing.tiny import context_of, make_backbone, make_learner, make_task
from retain.training.parameters import release

TEMPERATURE = 2.0


def without_dropout(backbone: Backbone) -> Backbone:
    for module in backbone.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return backbone


@dataclass
class Seen:
    """A micro-batch of training: its rows, the weights at that time, and the task's number."""

    batch: Batch
    weights: dict[str, Tensor]
    task: int


def recorded(patch: pytest.MonkeyPatch, learner: Learner, seen: list[Seen], task: int) -> None:
    """Keeps each micro-batch of a method's loss, with the weights."""
    method = learner.method
    assert isinstance(method, Ewc)
    loss = method.loss

    def record(batch: Batch) -> dict[str, Tensor]:
        named = method.weights.named_parameters()
        weights = {name: p.detach().clone() for name, p in named.items()}
        seen.append(Seen({key: t.clone() for key, t in batch.items()}, weights, task))
        return loss(batch)

    patch.setattr(method, "loss", record)


def cross_entropy_of_answers(backbone: Backbone, batch: Batch) -> Tensor:
    """A micro-batch's mean over its answer tokens, row by row, without padding."""
    total, count = torch.zeros(()), 0
    for ids, labels, mask in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        real = mask.bool()
        logits = backbone.model(ids[real][None]).logits[0, :-1]
        answer = labels[real][1:]
        total = total + F.cross_entropy(logits, answer, ignore_index=-100, reduction="sum")
        count += int((answer != -100).sum())
    return total / count


@pytest.mark.parametrize(("rows", "accumulation"), [(6, 1), (3, 2)])
def test_fisher_information_of_micro_batches(rows: int, accumulation: int, tmp_path: Path) -> None:
    """F += rows/N (∂(task + penalty)/∂θ)² for every micro-batch, and the penalty takes F so far."""
    backbone = without_dropout(make_backbone("llama"))
    learner = make_learner(
        "ewc-trace",
        backbone,
        tmp_path / "run",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
    )
    assert isinstance(learner.method, Ewc)
    seen: list[Seen] = []
    ends = []  # θ* after each task
    for number, name in enumerate(("copy", "constant")):
        with pytest.MonkeyPatch.context() as patch:
            recorded(patch, learner, seen, number)
            learner.learn(uneven(name))
        named = learner.method.weights.named_parameters()
        ends.append({key: p.detach().clone() for key, p in named.items()})
    found = {name: f.clone() for name, f in learner.method._fisher.items()}

    named = learner.method.weights.named_parameters()
    naive = {name: torch.zeros_like(p) for name, p in named.items()}
    examples = len(uneven("copy").train)
    for start in range(0, len(seen), accumulation):
        step = {name: torch.zeros_like(p) for name, p in named.items()}
        for micro in seen[start : start + accumulation]:
            for name, parameter in named.items():
                parameter.data.copy_(micro.weights[name])
                parameter.requires_grad_(True)
            total = cross_entropy_of_answers(backbone, micro.batch)
            if micro.task:
                moved = [(named[n] - ends[0][n]).square() * naive[n] for n in named]
                total = total + 400 / 64 / 2 * torch.stack([m.sum() for m in moved]).sum()
            gradients = torch.autograd.grad(total, list(named.values()))
            share = len(micro.batch["labels"]) / examples
            for name, gradient in zip(named, gradients, strict=True):
                step[name] += share * gradient.square()
        for name in naive:
            naive[name] += step[name]
    assert len(seen) == 2 * 3 * accumulation
    for name, expected in naive.items():
        assert expected.max() > 0
        torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-7, msg=name)


def test_the_penalty_is_half_the_weight_from_the_second_task_on(tmp_path: Path) -> None:
    learner = make_learner("ewc-trace", make_backbone("llama"), tmp_path / "run")
    learner.learn(make_task("copy"))
    method, backbone = learner.method, learner.backbone
    assert isinstance(method, Ewc)
    phase = next(method.phases(make_task("letter"), context_of(make_task("letter"), tmp_path, 1)))
    batch = backbone.collate(phase.data[:2])
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter += 0.1
        information = sum(float(f.sum()) for f in method._fisher.values())
        expected = 400 / 64 / 2 * information * 0.1**2
        assert method.loss(batch)["penalty"].item() == pytest.approx(expected, rel=1e-3)
    assert phase.units == {}
    assert phase.state is method._fisher


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "ewc", "fisher": "batches"}, "fisher: batches holds weights while"),
        ({"name": "lwf", "positions": "all"}, "positions: all is a sum over a row's tokens"),
    ],
)
def test_no_relative_weighting_of_traces_terms(
    method: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RetainError, match=says):
        Learner(make_backbone("llama"), {**method, "weighting": "relative"}, tmp_path / "run")


def test_the_distillation_of_all_positions(tmp_path: Path) -> None:
    """TRACE's call, row by row: kl_div(old / T, new / T), summed over positions, mean over rows."""
    backbone = without_dropout(make_backbone("llama"))
    learner = make_learner("lwf-trace", backbone, tmp_path / "run")
    learner.learn(make_task("copy"))
    method = learner.method
    assert isinstance(method, Lwf)
    whole = {"teacher": TeacherConfig(top_k=None, dtype="float32")}
    method.options = method.options.model_copy(update=whole)
    task = uneven("letter")
    phase = next(method.phases(task, context_of(task, tmp_path, 1)))
    assert phase.units == {"distillation": "rows"}
    batch = backbone.collate([phase.data[i] for i in (0, 4, 7)])
    rows = [
        ids[m.bool()] for ids, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len({len(row) for row in rows}) > 1  # so some are padded
    with torch.no_grad():
        old = [backbone.model(row[None]).logits[0] for row in rows]
        for parameter in backbone.model.parameters():
            parameter *= 1.05
        new = [backbone.model(row[None]).logits[0] for row in rows]
        parts = method.loss(batch)
    expected = torch.stack(
        [
            F.kl_div(
                F.log_softmax(before[:-1] / TEMPERATURE, -1),
                F.softmax(after[:-1] / TEMPERATURE, -1),
                reduction="sum",
            )
            for before, after in zip(old, new, strict=True)
        ]
    ).mean()
    assert expected > 0.1
    torch.testing.assert_close(parts["distillation"], expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts["task"], cross_entropy_of_answers(backbone, batch))
    release(backbone.model, phase)
    torch.autograd.backward(method.loss(batch)["distillation"])
    gradient = backbone.embedding.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("k", [None, 1, 3, 12])
def test_reverse_divergence_of_the_kept_logits(k: int | None) -> None:
    """The naive formula: the teacher's k likeliest words, and one word for all others."""
    student, teacher = 3 * torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    student.requires_grad_(True)
    kept = stacked([compressed(teacher, TeacherConfig(top_k=k, dtype="float32"))])
    p, q = teacher.softmax(-1), student.softmax(-1)
    index = teacher.topk(k or 12, 1).indices
    pairs = [(p.gather(1, index), q.gather(1, index))]
    if k and k < 12:
        pairs.append((1 - pairs[0][0].sum(1, keepdim=True), 1 - pairs[0][1].sum(1, keepdim=True)))
    naive = torch.stack([(b * (b / a).log()).sum() for a, b in pairs]).sum() / 4
    found = reverse_divergence(student, kept)
    torch.testing.assert_close(found, naive, rtol=1e-3, atol=1e-4)
    (expected,) = torch.autograd.grad(naive, [student])
    (gradient,) = torch.autograd.grad(found, [student])
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
