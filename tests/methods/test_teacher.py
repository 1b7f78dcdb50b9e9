"""Kept logits against the whole ones, and what the methods with a memory write and read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from retain.backbone.losses import IGNORED
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.methods.derpp import DerPp
from retain.methods.ewc import Ewc
from retain.methods.lwf import Lwf
from retain.methods.shared.memory import MemoryMethod
from retain.methods.shared.teacher import (
    TeacherConfig,
    bytes_per_position,
    compressed,
    soft_cross_entropy,
    squared_error,
    stacked,
)
from retain.testing.runs import Record
from retain.testing.tiny import (
    ENCODED,
    context_of,
    make_backbone,
    make_learner,
    make_task,
    read_files,
)
from retain.training.parameters import release

FIRST, SECOND, THIRD = make_task("copy"), make_task("constant"), make_task("letter")
FULL = {"top_k": None, "dtype": "float32"}


def logits_pair(positions: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, positions, vocabulary, generator=generator)
    return student, teacher


@given(positions=st.integers(1, 5), vocabulary=st.integers(2, 12), k=st.integers(1, 12))
def test_soft_cross_entropy_of_the_kept_logits(positions: int, vocabulary: int, k: int) -> None:
    """The naive formula: probabilities of the k likeliest words, and one word for all others."""
    student, teacher = logits_pair(positions, vocabulary)
    found = soft_cross_entropy(
        student, stacked([compressed(teacher, TeacherConfig(top_k=k, dtype="float32"))])
    )
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = 0.0
    for row_p, row_q in zip(p.tolist(), q.tolist(), strict=True):
        likeliest = sorted(range(vocabulary), key=lambda v: -row_p[v])[:k]
        pairs = [(row_p[v], row_q[v]) for v in likeliest]
        rest = 1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)
        if k < vocabulary:
            pairs.append(rest)
        expected -= sum(a * torch.tensor(b).log().item() for a, b in pairs) / positions
    torch.testing.assert_close(found.item(), expected, rtol=1e-3, atol=1e-4)


@given(positions=st.integers(1, 4), vocabulary=st.integers(3, 12), k=st.integers(1, 12))
def test_the_gradient_of_soft_cross_entropy(positions: int, vocabulary: int, k: int) -> None:
    """Autograd's of the naive formula, the likeliest being the teacher's."""
    student, teacher = logits_pair(positions, vocabulary)
    student.requires_grad_(True)
    kept = stacked([compressed(teacher, TeacherConfig(top_k=k, dtype="float32"))])
    (found,) = torch.autograd.grad(soft_cross_entropy(student, kept), [student])
    p, q = teacher.softmax(-1), student.softmax(-1)
    known = torch.zeros_like(p).scatter(1, teacher.topk(min(k, vocabulary), 1).indices, 1.0)
    naive = (known * p * q.log()).sum(1)
    if k < vocabulary:
        others = 1 - known
        naive = naive + (others * p).sum(1) * (others * q).sum(1).log()
    (expected,) = torch.autograd.grad(-naive.mean(), [student])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_student_that_is_sure_has_a_finite_loss() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    kept = stacked([compressed(torch.zeros(1, 3), TeacherConfig(top_k=1, dtype="float32"))])
    loss = soft_cross_entropy(student, kept)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_is_close() -> None:
    student, teacher = logits_pair(20, 60)
    exact = soft_cross_entropy(student, stacked([compressed(teacher, TeacherConfig(**FULL))]))
    half = soft_cross_entropy(student, stacked([compressed(teacher, TeacherConfig(top_k=None))]))
    torch.testing.assert_close(half, exact, rtol=1e-3, atol=0)


def test_squared_error_of_all_logits_is_that_of_the_logits() -> None:
    student, teacher = logits_pair(4, 9)
    found = squared_error(student, stacked([compressed(teacher, TeacherConfig(**FULL))]))
    torch.testing.assert_close(found, torch.nn.functional.mse_loss(student, teacher))


def test_squared_error_of_the_likeliest() -> None:
    student, teacher = logits_pair(4, 9)
    config = TeacherConfig(top_k=3, dtype="float32")
    found = squared_error(student, stacked([compressed(teacher, config)]))
    index = teacher.topk(3, 1).indices
    expected = (student - teacher).square().gather(1, index).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("top_k", [None, 5])
def test_bytes_per_position(top_k: int | None) -> None:
    config = TeacherConfig(top_k=top_k)
    tensors = compressed(torch.randn(1, 50), config)
    written = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert written == bytes_per_position(50, config)


@pytest.fixture
def seekr(tmp_path: Path) -> Learner:
    learner = make_learner("seekr", make_backbone("llama"), tmp_path / "run", Record())
    learner.learn(FIRST)
    return learner


def test_the_memory_is_as_large_as_foretold(seekr: Learner) -> None:
    """The attention on a short row may be more or less than the mean; the logits are exact."""
    foretold = seekr.method.footprint(FIRST, 6)
    assert foretold.trainable == sum(4 * p.numel() for p in seekr.backbone.model.parameters())
    files = list(seekr.run.path.glob("tasks/01-*/teacher/*.safetensors"))
    assert len(files) == 2  # a fifth of 12
    written = sum(
        tensor.numel() * tensor.element_size()
        for path in files
        for name, tensor in load_file(path).items()
        if not name.startswith(("heads", "positions"))
    )
    assert 0.8 * written < foretold.kept < 1.25 * written
    attention = sum(
        tensor.numel() * tensor.element_size()
        for path in files
        for name, tensor in load_file(path).items()
        if name.startswith("attention")
    )
    passing = 2 * attention  # of all heads, not of half of them
    assert 0.8 * passing < foretold.passing - foretold.trainable < 1.25 * passing
    assert isinstance(seekr.progress, Record)
    assert any(text.startswith("needs about") for text in seekr.progress.said)


def test_a_memory_that_does_not_fit_is_refused(
    seekr: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free, total = 1000, 10**9

    before = read_files(seekr.run.path)
    with monkeypatch.context() as patch:
        patch.setattr("retain.learner.check_resources.shutil.disk_usage", lambda path: Full())
        with pytest.raises(RetainError, match=r"needs about .* on the disk .* lower method\."):
            seekr.learn(SECOND)
    monkeypatch.setattr(
        "retain.learner.check_resources.psutil.virtual_memory",
        lambda: type("M", (), {"available": 9}),
    )
    with pytest.raises(RetainError, match=r"in RAM.*training\.per_device_train_batch_size"):
        seekr.learn(SECOND)
    assert read_files(seekr.run.path) == before
    monkeypatch.undo()
    seekr.learn(SECOND)  # nothing was lost


def test_passing_files_are_gone(seekr: Learner) -> None:
    folder = seekr.run.learned()[0]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"teacher", "predictions"}


def test_unfinished_work_makes_room(seekr: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed task writes over what it had written before."""
    unfinished = seekr.run.path / "tasks" / "02-x" / "before"
    unfinished.mkdir(parents=True)
    (unfinished / "big").write_bytes(bytes(5_000_000))

    class Full:
        free, total = 1000, 10**9

    monkeypatch.setattr("retain.learner.check_resources.shutil.disk_usage", lambda path: Full())
    seekr.check_tasks([SECOND])


def test_lwf_keeps_no_answers_of_the_old_model(tmp_path: Path) -> None:
    learner = make_learner("lwf", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    learner.learn(SECOND)
    assert not list(tmp_path.rglob("teacher"))


def test_only_the_newest_weights_are_kept(tmp_path: Path) -> None:
    learner = make_learner("seqft", make_backbone("llama"), tmp_path / "run")
    for task in (FIRST, SECOND):
        learner.learn(task)
    assert [path.parent.name for path in tmp_path.rglob("model.safetensors")] == ["02-constant"]
    assert learner.run.damaged() == []


def test_a_share_of_the_examples_is_kept(tmp_path: Path) -> None:
    learner = Learner(
        make_backbone("llama"),
        {"name": "replay", "replay": {"share": 0.25}},
        tmp_path / "run",
        training={"max_steps": 1},
    )
    learner.learn(FIRST)
    assert isinstance(learner.method, MemoryMethod)
    rows = [learner.backbone.encode(example) for example in FIRST.train]
    places = [
        rows.index({k: v for k, v in row.items() if k in ENCODED}) for row in learner.method.memory
    ]
    assert len(set(places)) == 3
    assert places != [0, 1, 2]


def test_lwf_begins_where_the_old_model_stands(tmp_path: Path) -> None:
    """Before its first step the student is the teacher, so distillation has no gradient."""
    learner = make_learner("lwf-lora", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    learner = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))  # has not routed yet
    assert isinstance(learner.method, Lwf)
    exact = {"teacher": TeacherConfig(**FULL)}
    learner.method.options = learner.method.options.model_copy(update=exact)
    (phase,) = islice(learner.method.phases(SECOND, context_of(SECOND, tmp_path, 1)), 1)
    release(learner.backbone.model, phase)
    batch = learner.backbone.collate(phase.data[:5])
    moving = phase.groups[0].parameters
    parts = phase.loss(batch)
    soft = torch.autograd.grad(parts["distillation"], moving, retain_graph=True)
    task = torch.autograd.grad(parts["task"], moving)
    largest = [max(float(g.abs().max()) for g in found) for found in (soft, task)]
    assert largest[0] < 1e-4 * largest[1]


def test_derpp_weighs_its_two_terms(tmp_path: Path) -> None:
    learner = make_learner("derpp", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    method, backbone = learner.method, learner.backbone
    assert isinstance(method, DerPp)
    for parameter in backbone.model.parameters():
        parameter.data *= 1.05
    batch = backbone.collate(method.memory)
    with torch.no_grad():
        parts = method.loss(batch)
        logits, targets = backbone.answer_logits(batch)
    student, index = logits[targets != IGNORED], []
    errors = []
    for path, row in zip(method.teacher_files, method.memory, strict=True):
        stored = load_file(path)
        count = sum(label != IGNORED for label in row["labels"])
        assert len(stored["logits"]) == count
        index.append(stored["index"].long())
        errors.append(stored["logits"].float() + stored["largest"][:, None])
    error = (student.gather(1, torch.cat(index)) - torch.cat(errors)).square().mean()
    torch.testing.assert_close(parts["logits"], 0.5 * error)
    torch.testing.assert_close(parts["replay"], 0.5 * backbone.answer_loss(batch))


def test_ewc_holds_weights_by_their_information(tmp_path: Path) -> None:
    learner = make_learner("ewc", make_backbone("llama"), tmp_path / "run")
    fishers = []
    for task in (FIRST, SECOND):
        learner.learn(task)
        assert isinstance(learner.method, Ewc)
        fishers.append({name: f.clone() for name, f in learner.method._fisher.items()})
    for name, later in fishers[1].items():
        assert (later >= fishers[0][name]).all()  # sums over tasks
    phase = next(learner.method.phases(THIRD, context_of(THIRD, tmp_path, 2)))
    batch = learner.backbone.collate(phase.data[:2])
    with torch.no_grad():
        assert phase.loss(batch)["penalty"] == 0
        for parameter in learner.backbone.model.parameters():
            parameter += 0.1
        expected = 400 / 2 * sum(float(f.sum()) for f in fishers[1].values()) * 0.1**2
        assert phase.loss(batch)["penalty"].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variant", ["ewc-relative", "ewc-lora-relative"])
def test_undoing_a_task_costs_the_weight_of_ewc(variant: str, tmp_path: Path) -> None:
    learner = make_learner(variant, make_backbone("llama"), tmp_path / "run")
    method = learner.method
    assert isinstance(method, Ewc)
    next(method.phases(FIRST, context_of(FIRST, tmp_path)))  # makes a LoRA, as learning does
    before = {name: p.detach().clone() for name, p in method.weights.named_parameters().items()}
    learner = make_learner(variant, make_backbone("llama"), tmp_path / "run")
    method = learner.method
    assert isinstance(method, Ewc)
    learner.learn(FIRST)
    phase = next(method.phases(SECOND, context_of(SECOND, tmp_path, 1)))
    batch = learner.backbone.collate(phase.data[:2])
    with torch.no_grad():
        for name, parameter in method.weights.named_parameters().items():
            parameter.copy_(before[name])
        assert phase.loss(batch)["penalty"].item() == pytest.approx(10, rel=1e-4)


def test_relative_distillation_is_divided_by_the_old_models_loss(tmp_path: Path) -> None:
    losses = []
    for variant in ("lwf", "lwf-relative"):
        learner = make_learner(variant, make_backbone("llama"), tmp_path / variant)
        learner.learn(FIRST)
        method = learner.method
        assert isinstance(method, Lwf)
        phase = next(method.phases(SECOND, context_of(SECOND, tmp_path / f"{variant}-2", 1)))
        rows = [learner.backbone.collate([row]) for row in phase.data]
        with torch.no_grad():
            losses.append(phase.loss(rows[0])["distillation"].item())
            own = sum(learner.backbone.answer_loss(row).item() for row in rows) / len(rows)
    assert losses[1] == pytest.approx(losses[0] / own, rel=1e-4)


def test_a_task_that_is_known_already_has_no_scale_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner("lwf-relative", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    learner.learn(SECOND)
    method = learner.method
    assert isinstance(method, Lwf)
    assert method._scale != 1
    monkeypatch.setattr("retain.methods.lwf.write_logits", lambda *arguments: 0.0)
    next(method.phases(SECOND, context_of(SECOND, tmp_path, 2)))
    assert method._scale == 1


def test_fisher_information_is_the_mean_squared_gradient(tmp_path: Path) -> None:
    learner = make_learner("ewc", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    method, backbone = learner.method, learner.backbone
    assert isinstance(method, Ewc)
    backbone.model.requires_grad_(True)
    expected = torch.zeros_like(backbone.embedding.weight)
    for example in FIRST.train:
        row = backbone.encode(example)
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        logits = backbone.model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        (gradient,) = torch.autograd.grad(loss, [backbone.embedding.weight])
        expected += gradient.square() / len(FIRST.train)
    found = load_file(learner.run.learned()[0] / "fisher.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-8)
