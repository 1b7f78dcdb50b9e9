"""AM-LoRA's layer in rank space against the paper's formula on full outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retain.errors import RetainError
from retain.layers.attentive_linear import (
    Attending,
    AttentiveLinear,
    entropy,
    sparsemax,
    to_gates,
)
from retain.methods.amlora.method import SELECTOR, AmLora, AmLoraConfig
from retain.system.files import read_tensors
from retain.testing.tiny import context_of, make_backbone, make_task

SCALE = 1.7


def naive(
    base: nn.Module,
    blocks: list[tuple[Tensor, Tensor]],
    selectors: list[tuple[Tensor, Tensor, Tensor]],
    zero: Tensor,
    x: Tensor,
    attending: Attending,
) -> Tensor:
    """Every block's full output through its own dense layer; gates; the weighted sum."""
    outputs = [SCALE * (x @ A.T @ B.T) for A, B in blocks]  # Δ_i x, (B, S, d_out) each
    activation = {"silu": F.silu, "tanh": torch.tanh, "relu": F.relu, "none": lambda t: t}[
        attending.activation
    ]
    scores = [zero.expand(*x.shape[:2])]
    for output, (M, b, v) in zip(outputs, selectors, strict=True):
        scores.append((activation(output @ M.T + b) * v).sum(-1))
    stacked = torch.stack(scores, -1)  # (B, S, T + 1)
    if attending.prompt is not None:
        share = attending.prompt / attending.prompt.sum(1, keepdim=True)
        stacked = (stacked * share[:, :, None]).sum(1, keepdim=True)
    gates = to_gates(stacked, attending.gate)
    return base(x) + sum(gates[..., i + 1, None] * out for i, out in enumerate(outputs))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    rank=st.integers(1, 3),
    length=st.integers(1, 5),
    hidden=st.sampled_from([None, 1, 3]),
    activation=st.sampled_from(["silu", "tanh", "relu", "none"]),
    gate=st.sampled_from(["softmax", "sparsemax", "sigmoid"]),
    train_all=st.booleans(),
    instance=st.booleans(),
    conv=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_formula_forward_and_backward(
    count: int,
    rank: int,
    length: int,
    hidden: int | None,
    activation: str,
    gate: str,
    train_all: bool,
    instance: bool,
    conv: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    attending = Attending(
        rank, SCALE, activation=activation, gate=gate, hidden=hidden, train_all=train_all, on=True
    )
    if instance:
        attending.prompt = torch.ones(2, length)
        attending.prompt[1, : length // 2] = 0
    base = Conv1D(11, 7) if conv else nn.Linear(7, 11)
    layer = AttentiveLinear(base.requires_grad_(False), attending, False)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        layer.freeze()
        layer.restart(generator)
        layer.B.data.normal_()
        layer.grow_selector(generator)
    layer.zero.data.normal_()
    selector = layer.selector_parameters().values()  # no zero block under sigmoid
    learning = [layer.A, layer.B, *selector]
    for parameter in selector:
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, length, 7, requires_grad=True)
    slope = torch.randn(2, length, 11)
    y = layer(x)
    found = torch.autograd.grad((y * slope).sum(), [x, *learning])

    places = [slice(i * rank, (i + 1) * rank) for i in range(count - 1)]
    blocks = [(layer.old_A[place], layer.old_B[:, place]) for place in places]
    blocks.append((layer.A, layer.B))
    parts = [torch.cat([getattr(layer, f"old_{n}"), getattr(layer, n)]) for n in "Mbv"]
    selectors = list(zip(*parts, strict=True))
    expected = naive(base, blocks, selectors, layer.zero, x, attending)
    wanted = torch.autograd.grad((expected * slope).sum(), [x, *learning])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7))
def test_sparsemax_is_the_projection_onto_the_simplex(scores: list[float]) -> None:
    """It lies on the simplex, and no move within it comes closer (the optimality condition)."""
    z = torch.tensor(scores, dtype=torch.float64)
    p = sparsemax(z)
    assert p.min() >= 0
    assert p.sum().item() == pytest.approx(1)
    gradient = p - z  # smallest, and equal, where p > 0
    assert gradient[p > 1e-12].max() <= gradient.min() + 1e-9


@pytest.mark.parametrize("gate", ["softmax", "sparsemax", "sigmoid"])
def test_the_entropy_of_closed_gates_has_a_finite_gradient(gate: str) -> None:
    scores = torch.tensor([[0.0, 150.0, -150.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy(to_gates(scores, gate)).sum(), [scores])
    assert gradient.isfinite().all()


def test_the_entropy_of_even_gates() -> None:
    assert entropy(torch.full((4,), 0.25)).exp().item() == pytest.approx(4)
    assert entropy(torch.tensor([0.0, 1.0, 1.0])).exp().item() == pytest.approx(2)


def test_gates_in_later_steps_are_the_prompts() -> None:
    """A generation's single tokens use what the prompt chose, also after beams were spread."""
    attending = Attending(
        2, SCALE, activation="none", gate="softmax", hidden=None, train_all=False, on=True
    )
    attending.prompt = torch.ones(2, 4)
    layer = AttentiveLinear(nn.Linear(7, 11), attending, False)
    generator = torch.Generator().manual_seed(0)
    layer.restart(generator)
    layer.B.data.normal_()
    layer.grow_selector(generator)
    with torch.no_grad():
        layer(torch.randn(2, 4, 7))
        (gates,) = attending.gates.values()
        x = torch.randn(6, 1, 7)
        y = layer(x)
        repeated = gates.repeat_interleave(3, 0)[:, :, 1:]
        expected = layer.base(x) + repeated * SCALE * (x @ layer.A.T @ layer.B.T)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("train", ["new", "all"])
@pytest.mark.parametrize(("gate", "hidden"), [("sigmoid", None), ("softmax", 3)])
def test_a_task_keeps_what_learned_of_the_selectors(
    train: str, gate: str, hidden: int | None, tmp_path: Path
) -> None:
    """What is frozen is in its own task's folder; loaded, all of them attend as before."""
    options = AmLoraConfig(rank=2, selector={"train": train, "gate": gate, "hidden": hidden})
    backbone = make_backbone("llama")
    method, again = AmLora(backbone, options), AmLora(make_backbone("llama"), options)
    sizes = []
    for task in map(make_task, ("copy", "constant", "letter")):
        folder = tmp_path / task.name
        context = context_of(task, folder)
        (phase,) = method.phases(task, context)
        for group in phase.groups:
            for parameter in group.parameters:
                parameter.data += torch.randn_like(parameter)
        method.save(context)
        again.load(context)
        saved = read_tensors(folder / SELECTOR)
        sizes.append(sum(tensor.numel() for tensor in saved.values()))
        assert {name.rpartition(".")[2] for name in saved} == (
            {"M", "b"} if gate == "sigmoid" else {"M", "b", "v", "zero"}
        )
    if train == "new":
        assert len(set(sizes)) == 1
    else:
        zeros = 0 if gate == "sigmoid" else len(method.layers)
        assert [size - zeros for size in sizes] == [n * (sizes[0] - zeros) for n in (1, 2, 3)]
    row = backbone.encode(make_task("copy").test[0])
    found = []
    for learned in (method, again):
        batch = learned.backbone.collate([row])
        learned.route(batch)
        with torch.no_grad():
            found.append((learned.backbone.answer_logits(batch)[0], learned.prompt_gates()))
    assert found[0][1].shape[2] == 4
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_an_encoder_by_any_name() -> None:
    """BART's layers are model.encoder.…, T5's encoder.…"""
    layers = AmLora(make_backbone("bart"), AmLoraConfig(rank=2)).layers
    assert all(
        layer.reads_prompt for name, layer in layers.items() if name.startswith("model.encoder.")
    )
    with pytest.raises(RetainError, match="at least one layer of the encoder"):
        AmLora(make_backbone("bart"), AmLoraConfig(rank=2, target_modules=["encoder_attn.q_proj"]))
