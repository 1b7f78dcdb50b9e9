"""Groups of texts: a partition, whatever the order; names; linkage against a naive one."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.discovery import boundaries, matched
from retain.discovery import grouping
from retain.discovery.grouping import BUFFER, FEWEST, Space, group_texts, text_of
from retain.discovery.naming import names_of
from retain.layers.linkage import linked
from retain.tasks import Example
from retain.testing.tiny import make_backbone
from tests.mixed import KINDS, mixed_rows


@cache
def space() -> Space:
    known = [text_of(row) for row in mixed_rows(0, 12)[:12]]
    return Space(make_backbone("llama"), [known])


def naive_linkage(y: Tensor, least: float, stop: int) -> set[frozenset[int]]:
    """Merges the two groups of the largest mean cosine, one pair after another."""
    near = y @ y.T
    groups = [frozenset([i]) for i in range(len(y))]
    while len(groups) > stop:
        pairs = [
            (float(near[sorted(a)][:, sorted(b)].mean()), i, j)
            for i, a in enumerate(groups)
            for j, b in enumerate(groups[:i])
        ]
        best, i, j = max(pairs)
        if best < least:
            break
        groups = [group for k, group in enumerate(groups) if k not in (i, j)] + [
            groups[i] | groups[j]
        ]
    return set(groups)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 14),
    seed=st.integers(0, 999),
    least=st.sampled_from([-2.0, -0.5, 0.0, 0.4, 0.9]),
    stop=st.integers(1, 15),
)
def test_linkage_is_the_naive_one(count: int, seed: int, least: float, stop: int) -> None:
    y = F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))
    label = linked(y @ y.T, least, stop).tolist()
    groups = {frozenset(i for i in range(count) if label[i] == name) for name in set(label)}
    assert groups == naive_linkage(y, least, stop)
    assert list(dict.fromkeys(label)) == list(range(len(groups)))  # by first members


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=len(KINDS)), seed=st.integers(0, 99))
def test_every_text_is_in_one_group_or_the_buffer_whatever_the_order(
    sizes: list[int], seed: int
) -> None:
    rows = [row for kind, size in enumerate(sizes) for row in mixed_rows(kind, size)]
    texts = [text_of(row) for row in rows]
    first = group_texts(space(), texts)
    count = len(first.near)
    numbers = first.group.tolist()
    assert len(numbers) == len(texts)
    assert set(numbers) <= {BUFFER, *range(count)}
    by_size = [numbers.count(number) for number in range(count)]
    assert by_size == sorted(by_size, reverse=True)
    assert all(size >= FEWEST for size in by_size)
    assert first.known.shape == (count, 1)
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    other = group_texts(space(), [texts[i] for i in order])
    assert other.group.tolist() == [numbers[i] for i in order]
    torch.testing.assert_close(other.fit, first.fit[order])


def test_tasks_of_a_shuffled_file_are_found() -> None:
    rows = [(task, row) for task in (0, 2, 3) for row in mixed_rows(task, 40)]
    random.Random(1).shuffle(rows)
    known = [text_of(row) for row in mixed_rows(2, 50)[40:]]
    found = group_texts(Space(make_backbone("llama"), [known]), [text_of(row) for _, row in rows])
    pairs = {(task, group) for (task, _), group in zip(rows, found.group.tolist(), strict=True)}
    grouped = {(task, group) for task, group in pairs if group != BUFFER}
    assert len(grouped) == 3 == len(found.near)
    own = next(group for task, group in grouped if task == 2)
    assert int(found.known[:, 0].argmax()) == own
    assert found.known[own, 0] > grouping.SAME
    assert (found.group == BUFFER).float().mean() < 0.1


def test_more_texts_than_groups_are_formed_of_join_them(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text_of(row) for kind in range(3) for row in mixed_rows(kind, 40)]
    whole = group_texts(space(), texts)
    monkeypatch.setattr(grouping, "SAMPLE", 90)
    part = group_texts(space(), texts)
    assert len(part.near) == len(whole.near) == 3
    assert (part.group != BUFFER).sum() > 110
    pairs = set(zip(part.group.tolist(), whole.group.tolist(), strict=True))
    assert len({pair for pair in pairs if BUFFER not in pair}) == 3


def test_a_stranger_stays_in_the_buffer() -> None:
    rows = [*mixed_rows(0, 30), *mixed_rows(3, 30), *mixed_rows(2, 5)]
    found = group_texts(space(), [text_of(row) for row in rows])
    assert found.group.tolist() == [found.group[0]] * 30 + [found.group[30]] * 30 + [BUFFER] * 5


def test_no_text_is_no_group() -> None:
    found = group_texts(space(), [])
    assert (len(found.group), len(found.near)) == (0, 0)


def test_names_are_words_of_one_group_and_differ() -> None:
    prompts = (
        "Route the ticket to a team.\nTicket: {}\nTeam:",
        "Judge the review of a product.\nReview: {}\nOpinion:",
    )
    texts = ("It broke.", "Where is it? It was to come on Monday.", "Paid twice.")
    groups = [[Example(prompt.format(text), ("x",)) for text in texts] for prompt in prompts]
    names = names_of(groups, [])
    assert names == ["route-ticket-team", "judge-review-product"]
    assert names_of(groups, names) == ["route-ticket-team-2", "judge-review-product-2"]
    assert names_of([groups[0], groups[0]], []) == ["route-the-ticket", "route-the-ticket-2"]
    assert names_of([[Example("1 + 1", ("2",))]], []) == ["group"]


def test_boundaries_last_and_match_once() -> None:
    groups = [0] * 8 + [1] + [0] * 8 + [BUFFER] * 3 + [2] * 9
    assert boundaries(groups) == [20]
    assert matched([20], [17, 20]) == 1
    assert matched([3], [17]) == 0
