"""The order of rows: shuffled epochs, and replayed rows in between."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Literal

import pytest
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from retain.training.batches import MOST_BETWEEN, Batches
from retain.training.phase import Phase, ReplayRows

Every = int | Literal["reference", "auto"]


def phase_of(rows: int, replayed: int = 0, every: Every = "reference") -> Phase:
    row = {"input_ids": [1]}
    replay = ReplayRows([row] * replayed, every) if replayed else None
    return Phase("learn", [row] * rows, [], lambda batch: {}, replay=replay)


@given(
    rows=st.integers(1, 30),
    replayed=st.integers(1, 9),
    every=st.integers(1, 5),
    size=st.integers(1, 7),
    accumulation=st.integers(1, 3),
    steps=st.integers(1, 25),
)
def test_replay_comes_in_steps_of_its_own(
    rows: int, replayed: int, every: int, size: int, accumulation: int, steps: int
) -> None:
    plain = Batches(phase_of(rows), size, accumulation, 1.0, steps, seed=3)
    both = Batches(phase_of(rows, replayed, every), size, accumulation, 1.0, steps, seed=3)
    batches = list(both)
    assert len(batches) == len(both) == both.steps * accumulation
    assert both.steps == steps + steps // every
    by_step = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    for number, step in enumerate(by_step, start=1):
        is_replay = number % (every + 1) == 0
        assert all((row >= rows) == is_replay for row in chain(*step))
    own = [batch for batch in batches if batch[0] < rows]
    assert own == list(plain)
    seen = Counter(row - rows for batch in batches if batch[0] >= rows for row in batch)
    assert set(seen) <= set(range(replayed))
    counts = [seen[row] for row in range(replayed)]
    assert max(counts) - min(counts) <= 1  # one pass after another
    for number in range(every, len(by_step), every + 1):  # and no more of it than a step needs
        rows_in_step = sum(map(len, by_step[number]))
        assert rows_in_step < min(replayed, size * accumulation) + accumulation


@given(rows=st.integers(1, 40), size=st.integers(1, 9), epochs=st.integers(1, 4))
def test_an_epoch_has_every_row_once(rows: int, size: int, epochs: int) -> None:
    batches = list(Batches(phase_of(rows), size, 1, float(epochs), -1, seed=0))
    in_epoch = -(-rows // size)
    assert len(batches) == epochs * in_epoch
    for epoch in range(epochs):
        found = chain(*batches[epoch * in_epoch : (epoch + 1) * in_epoch])
        assert sorted(found) == list(range(rows))


def test_the_published_rule_spreads_one_pass_over_an_epoch() -> None:
    batches = list(Batches(phase_of(80, 12), 8, 1, 1.0, -1, seed=0))  # 10 and 2 batches
    assert [batch[0] >= 80 for batch in batches] == ([False] * 5 + [True]) * 2
    assert sorted(chain(*batches)) == list(range(92))


def test_with_accumulation_too_every_epoch_has_a_replay_step() -> None:
    """A memory of 5 rows beside steps of 4 x 4 rows: a micro-batch has two of them at most."""
    order = Batches(phase_of(64, 5), 4, 4, 2.0, -1, seed=0)  # epochs of 4 steps
    assert order.steps == 10
    batches = list(order)
    replayed = [i for i, batch in enumerate(batches) if batch[0] >= 64]
    assert replayed == [16, 17, 18, 19, 36, 37, 38, 39]
    assert max(len(batches[i]) for i in replayed) == 2


def test_the_task_comes_in_the_order_of_trainers_own_sampler() -> None:
    rows = list(range(21))
    sampler = SeedableRandomSampler(rows, data_seed=7)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [order[i : i + 4] for i in range(0, 21, 4)]
    assert list(Batches(phase_of(21), 4, 1, 3.0, -1, seed=7)) == expected


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    memory=st.lists(st.integers(1, 300), max_size=20),
    size=st.integers(1, 5),
    accumulation=st.integers(2, 4),
)
def test_rows_of_a_step_are_sorted_before_it_is_cut(
    lengths: list[int], memory: list[int], size: int, accumulation: int
) -> None:
    """The step has the rows that it would have unsorted, and with even batches no more padding."""
    rows, old = ([{"input_ids": [1] * n} for n in part] for part in (lengths, memory))
    equal = phase_of(len(rows), len(old), 2)
    phase = replace(equal, data=rows, replay=replace(equal.replay, rows=old) if old else None)
    plain, found = (
        list(Batches(given, size, accumulation, 2.0, -1, seed=0)) for given in (equal, phase)
    )
    of = lengths + memory
    for begin in range(0, len(plain), accumulation):
        ours, theirs = (step[begin : begin + accumulation] for step in (found, plain))
        assert sorted(chain(*ours)) == sorted(chain(*theirs))
        assert sorted(map(len, ours)) == sorted(map(len, theirs))
        in_order = [of[row] for row in chain(*ours)]
        assert in_order == sorted(in_order, reverse=True)
        padded = [sum(max(of[i] for i in b) * len(b) for b in step) for step in (ours, theirs)]
        if len({*map(len, ours)}) == 1:  # else a long row may need to share a batch with fewer
            assert padded[0] <= padded[1]


def test_more_memory_than_task_is_replayed_at_every_step() -> None:
    batches = list(Batches(phase_of(8, 80), 8, 1, 3.0, -1, seed=0))
    assert [batch[0] >= 8 for batch in batches] == [False, True] * 3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_fixes_the_order(seed: int) -> None:
    first, again = (list(Batches(phase_of(50, 9, 2), 8, 1, 2.0, -1, seed)) for _ in range(2))
    assert first == again
    assert first != list(Batches(phase_of(50, 9, 2), 8, 1, 2.0, -1, seed + 1))


@pytest.mark.parametrize(("rows", "replayed"), [(1000, 10), (100, 10), (8, 10), (64, 1)])
def test_auto_is_the_published_rule_with_a_replay_step_in_every_eight(
    rows: int, replayed: int
) -> None:
    published = Batches(phase_of(rows, replayed), 4, 1, 1.0, 50, seed=0).every
    auto = Batches(phase_of(rows, replayed, "auto"), 4, 1, 1.0, 50, seed=0)
    assert auto.every == min(published, MOST_BETWEEN)
    assert auto.steps - 50 >= 50 // MOST_BETWEEN
