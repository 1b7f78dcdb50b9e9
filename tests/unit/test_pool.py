"""The fused pool against the paper's formula: every block's own output, weighted and summed."""

from copy import deepcopy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from retain.errors import RetainError
from retain.layers.attentive_linear import Attending, AttentiveLinear
from retain.layers.lora_pool import LoraPool
from retain.layers.pooled_linear import Mixture, PooledLinear
from retain.testing.tiny import make_backbone

SCALE = 1.7


def naive(base, blocks, x, weights, detach):
    """W x + Σ_i a_i s B_i (A_i x); with `detach`, old blocks see x without a graph."""
    y = base(x)
    for i, (A, B) in enumerate(blocks):
        source = x.detach() if detach and i < len(blocks) - 1 else x
        y = y + weights[:, i, None, None] * SCALE * (source @ A.T @ B.T)
    return y


def blocks_for(count, rank, d_in, d_out):
    return [(torch.randn(rank, d_in), torch.randn(d_out, rank)) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    rank=st.integers(1, 5),
    length=st.integers(1, 6),
    gradient=st.booleans(),
    conv=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_formula_forward_and_backward(count, rank, length, gradient, conv, seed):
    torch.manual_seed(seed)
    d_in, d_out, batch = 7, 11, 3
    base = Conv1D(d_out, d_in) if conv else nn.Linear(d_in, d_out)
    base.requires_grad_(False)
    mixture = Mixture(rank, SCALE)
    layer = PooledLinear(base, mixture, old_block_gradient=gradient)
    blocks = blocks_for(count, rank, d_in, d_out)
    for A, B in blocks[:-1]:
        layer.push(A, B)
    layer.restart()
    layer.A.data.copy_(blocks[-1][0])
    layer.B.data.copy_(blocks[-1][1])
    results = []
    for fused in (True, False):
        x = torch.linspace(-1, 1, batch * length * d_in).view(batch, length, d_in)
        x.requires_grad_(True)
        weights = torch.softmax(torch.arange(batch * count).view(batch, count) * 0.3, -1)
        weights.requires_grad_(True)
        if fused:
            mixture.set(weights)
            y = layer(x)
            newest = (layer.A, layer.B)
        else:
            newest = tuple(factor.clone().requires_grad_(True) for factor in blocks[-1])
            y = naive(base, [*blocks[:-1], newest], x, weights, detach=not gradient)
        gradients = torch.autograd.grad(y.square().sum(), [x, weights, *newest])
        results.append([y, *gradients])
    for fused, expected in zip(*results, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-3)


@given(
    count=st.integers(2, 9),
    top=st.integers(1, 9),
    beams=st.integers(1, 2),
    learning=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_few_blocks_are_the_mixture_when_the_others_have_no_weight(
    count, top, beams, learning, seed
):
    torch.manual_seed(seed)
    mixture = Mixture(2, SCALE)
    layer = PooledLinear(nn.Linear(7, 11).requires_grad_(False), mixture, True)
    for A, B in blocks_for(count, 2, 7, 11):
        layer.push(A, B)
    if learning:
        layer.thaw()
        count -= 1
    weights = torch.rand(3, count)
    weights[weights < weights.topk(min(top, count), 1).values[:, -1:]] = 0.0
    weights = torch.cat([weights, torch.rand(3, int(learning))], 1).requires_grad_(True)
    x = torch.randn(3 * beams, 4, 7, requires_grad=True)
    slope = torch.randn(3 * beams, 4, 11)
    results = []
    for few in (None, top):
        mixture.top_k = few
        mixture.set(weights)
        y = layer(x)
        gradients = torch.autograd.grad((y * slope).sum(), [x, weights])
        # A block without a weight is not computed, so its weight takes no gradient.
        results.append([y, gradients[0], gradients[1] * (weights != 0)])
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


@given(count=st.integers(1, 5), index=st.integers(-5, 4), learning=st.booleans())
@settings(max_examples=20, deadline=None)
def test_one_block_is_the_mixture_with_all_weight_on_it(count, index, learning):
    assume(-count <= index < count)
    mixture = Mixture(2, SCALE)
    layer = PooledLinear(nn.Linear(4, 6), mixture, True)
    for A, B in blocks_for(count, 2, 4, 6):
        layer.push(A, B)
    if learning:
        layer.thaw()
    x = torch.randn(3, 2, 4)
    one_hot = torch.zeros(3, count)
    one_hot[:, index] = 1.0
    mixture.set(one_hot)
    dense = layer(x)
    mixture.set(one_hot, range(count)[index])
    torch.testing.assert_close(layer(x), dense)


def test_the_cache_is_cleared_when_the_blocks_change():
    backbone = make_backbone("llama")
    pool = LoraPool(backbone.model, None, 2, 4)
    for name in "abcd":
        pool.grow(name, seed=0)
    for change in (pool.freeze, pool.thaw, pool.clear):
        pool.mixture.cache[nn.Linear(1, 1)] = ()
        change()
        assert not pool.mixture.cache


def test_a_layer_without_sequences_is_refused():
    layer = PooledLinear(nn.Linear(4, 6), Mixture(2, SCALE), False)
    layer.mixture.set(torch.ones(2, 0))
    with pytest.raises(RetainError, match=r"got input of shape \(6, 4\), expected"):
        layer(torch.randn(6, 4))


def test_a_generation_gathers_its_blocks_once(monkeypatch):
    mixture = Mixture(2, SCALE, top_k=2)
    layer = PooledLinear(nn.Linear(4, 6), mixture, False)
    for A, B in blocks_for(5, 2, 4, 6):
        layer.push(A, B)
    calls = []

    def largest(*given):
        calls.append(given)
        return PooledLinear._largest(layer, *given)

    monkeypatch.setattr(layer, "_largest", largest)
    x = torch.randn(3, 2, 4)
    for weights in (torch.rand(3, 5), torch.rand(3, 5)):
        mixture.set(weights)
        expected = layer(x)  # with a graph: not kept
        with torch.no_grad():
            for _ in range(3):
                torch.testing.assert_close(layer(x), expected)
    assert len(calls) == 4


def test_a_bfloat16_pool_is_the_float32_one_up_to_rounding():
    """Frozen blocks are in bfloat16; what is trained, and its sums over layers, in float32."""
    torch.manual_seed(0)
    base, blocks = nn.Linear(64, 48), blocks_for(5, 4, 64, 48)
    x, slope = torch.randn(3, 6, 64), torch.randn(3, 6, 48)
    weights = torch.softmax(torch.randn(3, 5), 1).requires_grad_(True)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        mixture = Mixture(4, SCALE, dtype)
        layer = PooledLinear(deepcopy(base).to(dtype).requires_grad_(False), mixture, True)
        for A, B in blocks:
            layer.push(A, B)
        assert layer.old_A.dtype == layer.old_B.dtype == dtype
        layer.thaw()
        torch.testing.assert_close((layer.A.data, layer.B.data), blocks[-1], rtol=0, atol=0)
        mixture.set(weights)
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        learned = [weights, layer.A, layer.B]
        results.append([y, *torch.autograd.grad((y * slope).sum(), learned)])
        layer.freeze()
        layer.thaw()
        torch.testing.assert_close(layer.A.data, blocks[-1][0], rtol=0, atol=0)
    for half, single in zip(*results, strict=True):
        assert (half.float() - single).norm() < 0.01 * single.norm()
    assert [result.dtype for result in results[0][1:]] == [torch.float32] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_pool_computes_in_the_backbones_bfloat16(dtype):
    backbone = make_backbone("llama")
    backbone.model.to(dtype)
    pool = LoraPool(backbone.model, None, 2, 4)
    pool.grow("a", seed=0)
    pool.grow("b", seed=1)
    layer = next(iter(pool.layers.values()))
    assert layer.old_A.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    assert {p.dtype for p in pool.parameters()} == {torch.float32}
    pool.use(torch.full((2, 2), 0.5, requires_grad=True))
    x = torch.randn(2, 3, layer.d_in).to(dtype)
    assert layer(x).dtype == dtype


@given(count=st.integers(1, 5), beams=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_beams_use_their_samples_weights(count, beams):
    torch.manual_seed(0)
    mixture = Mixture(2, SCALE)
    layer = PooledLinear(nn.Linear(4, 6), mixture, False)
    for A, B in blocks_for(count, 2, 4, 6):
        layer.push(A, B)
    x = torch.randn(3, 2, 4)
    mixture.set(torch.rand(3, count))
    alone = layer(x)
    torch.testing.assert_close(
        layer(x.repeat_interleave(beams, 0)), alone.repeat_interleave(beams, 0)
    )


def test_frozen_blocks_take_no_gradient_and_off_means_off():
    base = nn.Linear(4, 6)
    mixture = Mixture(2, SCALE)
    layer = PooledLinear(base, mixture, False)
    layer.push(*blocks_for(1, 2, 4, 6)[0])
    x = torch.randn(1, 3, 4)
    torch.testing.assert_close(layer(x), base(x), rtol=0, atol=0)
    mixture.set(torch.ones(1, 1))
    assert not torch.allclose(layer(x), base(x))
    assert not layer.old_A.requires_grad
    assert not layer.old_B.requires_grad
    assert [name for name, _ in layer.named_parameters()] == ["base.weight", "base.bias"]


def test_freeze_and_thaw_return_the_same_block():
    layer = PooledLinear(nn.Linear(4, 6), Mixture(2, SCALE), False)
    for A, B in blocks_for(2, 2, 4, 6):
        layer.push(A, B)
    before = layer.old_A.clone(), layer.old_B.clone()
    layer.thaw()
    assert layer.A.shape == (2, 4)
    assert layer.old_A.shape == (2, 4)
    layer.freeze()
    torch.testing.assert_close((layer.old_A, layer.old_B), before, rtol=0, atol=0)


def test_pushed_blocks_follow_a_model_that_moves():
    layer = PooledLinear(nn.Linear(4, 6), Mixture(2, SCALE), False)
    for A, B in blocks_for(2, 2, 4, 6):
        layer.push(A, B)
    layer.to(torch.float64)
    assert (layer.old_A.dtype, layer.old_B.dtype) == (torch.float64, torch.float64)
    assert (layer.old_A.shape, layer.old_B.shape) == ((4, 4), (6, 4))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_blocks(count):
    layer = PooledLinear(nn.Linear(4, 6), Mixture(2, SCALE), False)
    blocks = blocks_for(count, 2, 4, 6)
    for A, B in blocks:
        layer.push(A, B)
    weights = torch.rand(2, count)
    layer.mixture.set(weights)
    x = torch.randn(2, 5, 4)
    expected = layer.base(x)
    for i, (A, B) in enumerate(blocks):
        expected = expected + weights[:, i, None, None] * SCALE * (x @ A.T @ B.T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("make", ["pooled", "attentive"])
def test_dropout_is_of_the_trainable_block_in_training_only(make):
    torch.manual_seed(0)
    p, rank = 0.5, 2
    base = nn.Linear(7, 11).requires_grad_(False)
    if make == "pooled":
        mixture = Mixture(rank, SCALE)
        layer = PooledLinear(base, mixture, True, dropout=p)
    else:
        mixture = Attending(
            rank, SCALE, activation="none", gate="sigmoid", hidden=None, train_all=False
        )
        layer = AttentiveLinear(base, mixture, True, dropout=p)
    old, new = blocks_for(2, rank, 7, 11)
    layer.push(*old)
    layer.restart()
    layer.A.data.copy_(new[0])
    layer.B.data.copy_(new[1])
    x = torch.randn(3, 4, 7)
    weights = torch.full((3, 2), 0.5)  # the gate of a selector that is zero
    if make == "pooled":
        mixture.set(weights)
    else:
        mixture.on = True
        for name, shape in (("M", (1, 1, 11)), ("b", (1, 1))):
            layer.register_buffer(f"old_{name}", torch.zeros(shape), persistent=False)
            setattr(layer, name, nn.Parameter(torch.zeros(shape)))
        layer.register_buffer("old_v", torch.ones(1, 1), persistent=False)
        layer.v = nn.Parameter(torch.ones(1, 1))
    layer.eval()
    torch.testing.assert_close(layer(x), naive(base, [old, new], x, weights, False))
    layer.train()
    torch.manual_seed(1)
    trained = layer(x)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, p)
    expected = naive(base, [old], x, weights, False)
    expected = expected + weights[:, 1, None, None] * SCALE * (dropped @ new[0].T @ new[1].T)
    torch.testing.assert_close(trained, expected)
