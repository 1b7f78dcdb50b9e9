"""SEEKR: streamed measures against whole attention matrices, batches against single samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.backbone import Backbone, Features
from retain.learner.learner import Learner
from retain.methods.seekr.config import SeekrConfig, budget
from retain.methods.seekr.heads import Measure, importance, normalised, select, sensitivity
from retain.methods.seekr.method import Seekr
from retain.testing.tiny import ENCODED, KINDS, make_backbone, make_learner, make_task

FIRST, SECOND = make_task("copy"), make_task("letter")


@pytest.fixture(scope="module", params=KINDS)
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tmp_path_factory.mktemp("seekr") / "run"
    learner = make_learner("seekr", make_backbone(request.param), folder)
    learner.learn(FIRST)
    learner.learn(SECOND)
    return learner


def method_of(learner: Learner) -> Seekr:
    assert isinstance(learner.method, Seekr)
    return learner.method


def test_a_batch_gives_the_mean_of_its_samples(learned: Learner) -> None:
    """Samples of two tasks, which chose other heads, and of several lengths."""
    method, backbone = method_of(learned), learned.backbone
    rows = method.memory
    assert len({len(row["input_ids"]) for row in rows}) > 1
    assert len(rows) == 4
    learned_weights = {name: p.clone() for name, p in backbone.model.state_dict().items()}
    for parameter in backbone.model.parameters():  # the student is no longer the teacher
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(1)
        )
    method.capture.on()
    with torch.no_grad():
        together = method.loss(backbone.collate(rows))
        alone = [method.loss(backbone.collate([row])) for row in rows]
    method.capture.off()
    backbone.model.load_state_dict(learned_weights)
    mean = torch.stack([parts["attention"] for parts in alone]).mean()
    assert mean > 0
    torch.testing.assert_close(together["attention"], mean, rtol=1e-4, atol=1e-5)
    counts = torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows]).float()
    for part in ("replay", "logits"):  # means over answer tokens
        each = torch.stack([parts[part] for parts in alone])
        expected = (each * counts).sum() / counts.sum()
        torch.testing.assert_close(together[part], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", ["squares", "norms"])
def test_sensitivity_of_a_batch_is_the_mean_of_its_samples(
    learned: Learner, measure: Measure
) -> None:
    method, backbone = method_of(learned), learned.backbone
    rows = method.memory
    method.capture.on()

    def of(chosen: list[Features]) -> torch.Tensor:
        batch = backbone.collate(chosen)
        return sensitivity(backbone, method.capture, method.modules, batch, measure)

    together, alone = of(rows), torch.stack([of([row]) for row in rows])
    method.capture.off()
    assert not backbone.embedding.weight.requires_grad
    assert (together > 0).any()
    torch.testing.assert_close(together, alone.mean(0), rtol=1e-3, atol=1e-9)


def test_the_teacher_agrees_with_itself(tmp_path: Path) -> None:
    """Right after its task the student is the teacher: no attention loss but half precision's."""
    learner = make_learner("seekr", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    method = method_of(learner)
    method.capture.on()
    with torch.no_grad():
        parts = method.loss(learner.backbone.collate(method.memory))
    method.capture.off()
    assert parts["attention"].abs() < 1e-3 * 1000


def test_the_model_before_a_task_has_a_relative_attention_term_of_one(tmp_path: Path) -> None:
    learner = make_learner("seekr-relative", make_backbone("llama"), tmp_path / "run")
    before = {name: p.clone() for name, p in learner.backbone.model.state_dict().items()}
    learner.learn(FIRST)
    method = method_of(learner)
    learner.backbone.model.load_state_dict(before)
    method.capture.on()
    with torch.no_grad():
        parts = method.loss(learner.backbone.collate(method.memory))
    method.capture.off()
    assert parts["attention"].item() == pytest.approx(1, rel=0.02)  # written in half precision


def test_checkpointing_keeps_no_weights_that_it_computed_again(learned: Learner) -> None:
    method, backbone = method_of(learned), learned.backbone
    model = backbone.model.requires_grad_(True).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    method.capture.on()
    parts = method.loss(backbone.collate(method.memory))
    torch.stack(list(parts.values())).sum().backward()
    assert method.capture.weights == {}
    method.capture.off()
    model.activation_checkpointing_disable()
    model.requires_grad_(False).eval().zero_grad()


def whole_matrices(backbone: Backbone, row: dict[str, list[int]]) -> torch.Tensor:
    """(layers, heads, S, S) by eager attention."""
    backbone.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = backbone.model(torch.tensor([row["input_ids"]]), output_attentions=True)
    backbone.model.set_attn_implementation("sdpa")
    return torch.stack(output.attentions)[:, 0]


@pytest.mark.parametrize("measure", ["squares", "norms"])
def test_forgettability_is_the_change_of_the_matrices(tmp_path: Path, measure: str) -> None:
    backbone = make_backbone("llama")
    options = {
        "name": "seekr",
        "change": measure,
        "replay": {"share": 0.3},
        "budget": {"queries": 1.0},
        "teacher": {"dtype": "float32"},
    }
    learner = Learner(backbone, options, tmp_path / "run", training={"max_steps": 2})
    rows = [backbone.encode(example) for example in FIRST.train]
    before = {json.dumps(row): whole_matrices(backbone, row) for row in rows}
    learner.learn(FIRST)
    kept = [{k: v for k, v in row.items() if k in ENCODED} for row in method_of(learner).memory]
    assert len(kept) == 3
    squares = torch.stack(
        [
            (whole_matrices(backbone, row) - before[json.dumps(row)]).square().mean((2, 3))
            for row in kept
        ]
    )
    expected = (squares if measure == "squares" else squares.sqrt()).mean(0)
    found = method_of(learner).forgettabilities[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


def test_what_is_kept_of_a_task(learned: Learner) -> None:
    method = method_of(learned)
    for folder in learned.run.learned():
        stored = json.loads((folder / "heads.json").read_text())
        assert stored["modules"] == list(method.modules)
        chosen = torch.tensor(stored["selected"])
        assert chosen.sum() == budget(0.5, chosen.numel())
        sensitivity = torch.tensor(stored["sensitivity"])
        torch.testing.assert_close(sensitivity.sum(1), torch.ones(len(chosen)))
        assert (torch.tensor(stored["forgettability"]) >= 0).all()


@settings(max_examples=50)
@given(layers=st.integers(1, 6), heads=st.integers(1, 6), a=st.integers(1, 6), b=st.integers(1, 36))
def test_selection(layers: int, heads: int, a: int, b: int) -> None:
    """The naive reading: rank layers by their sum, then the heads of the best ones together."""
    scores = torch.rand(layers, heads, generator=torch.Generator().manual_seed(a * 40 + b))
    chosen = select(scores, a, b)
    ranked = sorted(range(layers), key=lambda i: -scores[i].sum())[:a]
    pairs = [(i, j) for i in ranked for j in range(heads)]
    best = sorted(pairs, key=lambda pair: -scores[pair])[:b]
    assert {tuple(pair) for pair in chosen.nonzero().tolist()} == set(best)


def test_accumulation_over_tasks() -> None:
    s, f = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0), None
    s = [normalised(t + 0.1) for t in s]
    f = [t.flip(0) for t in s]
    products = importance(s, f, "sum_of_products")
    torch.testing.assert_close(products, s[0] * f[0] + s[1] * f[1])
    sums = importance(s, f, "product_of_sums")
    torch.testing.assert_close(sums, (s[0] + s[1]) * (f[0] + f[1]))


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [(24, 32, 24), (0.75, 32, 24), (1, 32, 1), (1.0, 7, 7), (99, 7, 7)],
)
def test_budgets_are_counts_or_shares(value: float, total: int, expected: int) -> None:
    assert budget(value, total) == expected


def test_a_preset_fills_in_what_is_not_given() -> None:
    options = SeekrConfig.model_validate({"preset": "paper", "gradient": "norms"})
    assert (options.teacher.top_k, options.teacher.dtype) == (None, "float32")
    assert (options.gradient, options.change) == ("norms", "squares")
