"""AM-LoRA's layer in rank space against the paper's formula on full outputs."""

from __future__ import annotations

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
from retain.methods.amlora import AmLora, AmLoraConfig
from tests.tiny import make_backbone

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
        activation=activation, gate=gate, hidden=hidden, train_all=train_all, on=True
    )
    if instance:
        attending.prompt = torch.ones(2, length)
        attending.prompt[1, : length // 2] = 0
    base = Conv1D(11, 7) if conv else nn.Linear(7, 11)
    layer = AttentiveLinear(base.requires_grad_(False), rank, SCALE, attending, False)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        layer.freeze()
        layer.restart(generator)
        layer.B.data.normal_()
        layer.grow_selector(generator)
    layer.zero.data.normal_()
    learning = [layer.A, layer.B, *layer.selector_parameters()]  # no zero block under sigmoid
    for parameter in layer.selector_parameters():
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
    attending = Attending(on=True, prompt=torch.ones(2, 4))
    layer = AttentiveLinear(nn.Linear(7, 11), 2, SCALE, attending, False)
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


def test_an_encoder_by_any_name() -> None:
    """BART's layers are model.encoder.…, T5's encoder.…"""
    layers = AmLora(make_backbone("bart"), AmLoraConfig(rank=2)).layers
    assert all(
        layer.reads_prompt for name, layer in layers.items() if name.startswith("model.encoder.")
    )
    with pytest.raises(RetainError, match="some layer of the encoder"):
        AmLora(make_backbone("bart"), AmLoraConfig(rank=2, target_modules=["encoder_attn.q_proj"]))
