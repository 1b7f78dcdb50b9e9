"""The router's weights for long streams: few blocks of many, few old tasks a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.methods.sapt.reflection import Reflection
from retain.methods.sapt.router import Router

WIDTH = 6


def make_router(blocks: int, top_k: int | None = None, seed: int = 0) -> Router:
    torch.manual_seed(seed)
    router = Router(WIDTH, 4, 1.0, torch.zeros(WIDTH), top_k)
    for _ in range(blocks):
        router.grow(torch.randn(WIDTH))
    return router.eval()


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 8), top_k=st.integers(1, 9), seed=st.integers(0, 100))
def test_the_largest_weights_stay_in_their_proportion(blocks: int, top_k: int, seed: int) -> None:
    router = make_router(blocks, top_k, seed)
    e = torch.randn(5, WIDTH)
    whole, few = router.attention(e), router(e)
    if top_k >= blocks:
        assert torch.equal(few, whole)
        return
    torch.testing.assert_close(few.sum(1), torch.ones(5))
    for all_, kept in zip(whole, few, strict=True):
        chosen = all_.topk(top_k).indices
        assert set(kept.nonzero()[:, 0].tolist()) == set(chosen.tolist())
        torch.testing.assert_close(kept[chosen] * all_[chosen].sum(), all_[chosen])


@given(blocks=st.integers(3, 8), seed=st.integers(0, 100))
def test_the_newest_block_always_learns(blocks: int, seed: int) -> None:
    """A prompt that does not pick it among its few would leave its key and factors as they are."""
    router = make_router(blocks, 2, seed).train()
    weights = router(torch.randn(20, WIDTH))
    assert ((weights > 0).sum(1) == 2).all()
    assert (weights[:, -1] > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(20))


def test_reflection_is_the_papers_sum() -> None:
    """Task by task and sample by sample, as in eq. 8 (arXiv 2401.08295)."""
    router, reflection = make_router(4), Reflection()
    expected = torch.zeros(())
    for task in range(3):
        embeddings, stored = torch.randn(2 + task, WIDTH), torch.randn(1 + task).softmax(0)
        reflection.add(embeddings, stored)
        own = torch.zeros(())
        for e in embeddings:
            now = router.attention(e[None])[0]
            own = own + sum(a * (a / b).log() for a, b in zip(stored, now, strict=False))
        expected = expected + own / len(embeddings)
    torch.testing.assert_close(reflection.loss(router), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_drawn_tasks_stand_for_all(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all ways to draw them, the mean is the loss on all old tasks."""
    router, reflection = make_router(4), Reflection()
    for task in range(3):
        reflection.add(torch.randn(2 + task, WIDTH), torch.randn(1 + task).softmax(0))
    rolls = [torch.arange(3).roll(shift) for shift in range(3)]
    found = []
    for order in rolls:
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: order)
        found.append(reflection.loss(router, count))
    torch.testing.assert_close(torch.stack(found).mean(), reflection.loss(router))
