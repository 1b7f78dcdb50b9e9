"""Text metrics against the published scorer's numbers; stream metrics against their formulas."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.errors import RetainError
from retain.metrics import continual
from retain.metrics.text import METRICS, check_metric, exact_match, normalise, rouge_l, score

FIXTURES = Path(os.environ.get("RETAIN_FIXTURES", Path(__file__).parent / "fixtures"))

# -- text


@pytest.fixture(scope="module")
def published() -> list[dict[str, Any]]:
    recorded = json.loads((FIXTURES / "metrics" / "scores.json").read_text(encoding="utf-8"))
    return recorded["superni"]


@pytest.mark.parametrize(
    ("metric", "key"), [("exact_match", "exact_match"), ("rouge_l", "eval_rougeL")]
)
def test_superni_scores_are_the_published_scorer_s(
    published: list[dict[str, Any]], metric: str, key: str
) -> None:
    assert published, "no recorded scores"
    for entry in published:
        references = [r if isinstance(r, list) else [r] for r in entry["references"]]
        value = score(metric, entry["predictions"], references)
        assert value == pytest.approx(entry["expected"][key], abs=1e-3), entry["task"]


def test_the_best_of_several_references_counts(published: list[dict[str, Any]]) -> None:
    assert exact_match("dog", ["cat", "Dog."]) == 1.0
    assert exact_match("dog", ["cat", "dogs"]) == 0.0
    assert rouge_l("the red dog", ["a b c", "the red dog"]) == 1.0
    for entry in published:
        for prediction, reference in zip(entry["predictions"], entry["references"], strict=True):
            for metric in METRICS.values():
                one = metric(prediction, [reference])
                assert (
                    metric(prediction, ["zzz", reference])
                    == one
                    == metric(prediction, [reference, "zzz"])
                )


def test_rouge_l_is_an_f_measure_of_stemmed_words() -> None:
    # the longest common subsequence is "a c" of 3 and of 2 words: P 2/2, R 2/3
    assert rouge_l("a c", ["a b c"]) == pytest.approx(0.8)
    assert rouge_l("running", ["runs"]) == 1.0
    assert rouge_l("", ["a"]) == 0.0


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The Dog,\n barked!  ", "the dog barked"),
        ("U.S.", "us"),
        ("don't", "dont"),
        ("$12", "12"),
        ("Ü 任务。", "ü 任务。"),  # the published scorer removes ASCII punctuation only
        ("...", ""),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain


def test_score_is_the_mean_in_percent() -> None:
    assert score("exact_match", ["a", "b", "c"], [["a"], ["x"], ["C", "y"]]) == pytest.approx(
        200 / 3
    )


def test_score_refuses_bad_input() -> None:
    with pytest.raises(RetainError, match="'bleu' is unknown; choose one of exact_match, rouge_l"):
        check_metric("bleu", "task 'x'")
    with pytest.raises(ValueError, match="argument"):
        score("exact_match", ["a", "b"], [["a"]])


# -- streams

Rows = list[list[float | None]]
SCORE = st.floats(0, 100)


@st.composite
def matrices(draw: st.DrawFn, least: int = 1) -> Rows:
    size = draw(st.integers(least, 6))
    return [[draw(SCORE) for _ in range(i + 1)] for i in range(size)]


def same(value: float | None, expected: float) -> bool:
    return value is not None and value == pytest.approx(expected, abs=1e-9)


@given(matrices(least=2), st.data())
def test_metrics_follow_their_formulas(R: Any, data: st.DataObject) -> None:
    T = len(R)
    single = data.draw(st.lists(SCORE, min_size=T, max_size=T))
    last = R[T - 1]
    zero_shot = data.draw(st.lists(SCORE, min_size=T, max_size=T))
    found = continual.summary(R, single, zero_shot)
    assert same(found["zero_shot_transfer"], sum(zero_shot[j] for j in range(1, T)) / (T - 1))
    assert same(found["average_performance"], sum(last[j] for j in range(T)) / T)
    drops = [max(R[i][j] for i in range(j, T - 1)) - last[j] for j in range(T - 1)]
    assert same(found["forgetting"], sum(drops) / (T - 1))
    changes = [last[j] - R[j][j] for j in range(T - 1)]
    assert same(found["backward_transfer"], sum(changes) / (T - 1))
    assert same(found["backward_transfer_reference"], sum(changes) / T)
    assert same(found["forward_transfer"], sum(R[j][j] - single[j] for j in range(T)) / T)
    assert same(found["forward_transfer_reference"], sum(R[j][j] for j in range(T)) / T - 50.94)


@given(matrices(least=2))
def test_forgetting_is_at_least_minus_backward_transfer(R: Any) -> None:
    forgetting, backward = continual.forgetting(R), continual.backward_transfer(R)
    assert forgetting is not None
    assert backward is not None
    assert forgetting >= -backward - 1e-9


@given(matrices(), st.data())
def test_a_metric_that_needs_an_unmeasured_cell_is_none(R: Any, data: st.DataObject) -> None:
    T = len(R)
    i = data.draw(st.integers(0, T - 1))
    j = data.draw(st.integers(0, i))
    full = continual.summary(R, [0.0] * T)
    R[i][j] = None
    holed = continual.summary(R, [0.0] * T)
    last, diagonal, old = i == T - 1, i == j, j < T - 1
    needs = {
        "average_performance": last,
        "forgetting": old,
        "backward_transfer": old and (last or diagonal),
        "backward_transfer_reference": old and (last or diagonal),
        "forward_transfer": diagonal,
        "forward_transfer_reference": diagonal,
        "zero_shot_transfer": False,
    }
    assert set(needs) == set(full)
    for name, needed in needs.items():
        assert holed[name] == (None if needed else full[name]), name


@given(matrices(least=2), st.data())
def test_forward_transfer_needs_every_single_score(R: Any, data: st.DataObject) -> None:
    single: list[float | None] = [0.0] * len(R)
    single[data.draw(st.integers(0, len(R) - 1))] = None
    assert continual.forward_transfer(R, single) is None
    assert continual.summary(R)["forward_transfer"] is None


@given(SCORE, SCORE)
def test_one_task_has_no_forgetting_and_no_backward_transfer(a: float, b: float) -> None:
    found = continual.summary([[a]], [b])
    assert found["average_performance"] == a
    assert found["forward_transfer"] == a - b
    assert found["forgetting"] is None
    assert found["backward_transfer"] is None
    assert found["backward_transfer_reference"] is None


def test_no_task_has_no_metric() -> None:
    assert set(continual.summary([]).values()) == {None}


@given(matrices(least=2))
def test_a_stream_that_keeps_everything_forgets_nothing(R: Any) -> None:
    kept = [[R[j][j] for j in range(i + 1)] for i in range(len(R))]
    assert continual.forgetting(kept) == 0
    assert continual.backward_transfer(kept) == 0
    assert continual.average_performance(kept) == pytest.approx(
        sum(R[j][j] for j in range(len(R))) / len(R)
    )
