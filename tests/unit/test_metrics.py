"""Text metrics against the published scorer's numbers; stream metrics against their formulas."""

from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.errors import RetainError
from retain.metrics import continual
from retain.metrics.continual import Drop, Drops
from retain.metrics.text import METRICS, check_metric_name, exact_match, normalise, rouge_l, score
from retain.metrics.trace import TASK_METRICS, edit_similarity, first_letter, rouge_l_union, sari

FIXTURES = Path(os.environ.get("RETAIN_FIXTURES", Path(__file__).parents[1] / "fixtures"))

# -- text


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads((FIXTURES / "metrics" / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published(recorded: dict[str, Any]) -> list[dict[str, Any]]:
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
        value = score(metric, entry["predictions"], references, [""] * len(references))
        assert value == pytest.approx(entry["expected"][key], abs=1e-3), entry["task"]


def test_the_best_of_several_references_counts(published: list[dict[str, Any]]) -> None:
    assert exact_match("dog", ["cat", "Dog."], "") == 1.0
    assert exact_match("dog", ["cat", "dogs"], "") == 0.0
    assert rouge_l("the red dog", ["a b c", "the red dog"], "") == 1.0
    of_the_best = [metric for metric in METRICS.values() if metric is not sari]
    for entry in published:
        for prediction, reference in zip(entry["predictions"], entry["references"], strict=True):
            for metric in of_the_best:
                one = metric(prediction, [reference], "")
                assert (
                    metric(prediction, ["žžž", reference], "")
                    == one
                    == metric(prediction, [reference, "žžž"], "")
                )


def test_rouge_l_is_an_f_measure_of_stemmed_words() -> None:
    # the longest common subsequence is "a c" of 3 and of 2 words: P 2/2, R 2/3
    assert rouge_l("a c", ["a b c"], "") == pytest.approx(0.8)
    assert rouge_l("running", ["runs"], "") == 1.0
    assert rouge_l("", ["a"], "") == 0.0


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
    references = [["a"], ["x"], ["C", "y"]]
    value = score("exact_match", ["a", "b", "c"], references, ["p"] * 3)
    assert value == pytest.approx(200 / 3)


def test_score_refuses_bad_input() -> None:
    with pytest.raises(RetainError, match="'bleu' is unknown; choose one of exact_match, rouge_l"):
        check_metric_name("bleu", "task 'x'")
    with pytest.raises(ValueError, match="argument"):
        score("exact_match", ["a", "b"], [["a"]], ["p", "q"])
    with pytest.raises(ValueError, match="argument"):
        score("exact_match", ["a", "b"], [["a"], ["b"]], ["p"])


# -- TRACE

PUBLISHED_AS = {
    "first_letter": ("accuracy", 100),
    "exact_answer": ("accuracy", 100),
    "rouge_l_union": ("rouge-L", 100),
    "edit_similarity": ("similarity", 1),
}


def test_trace_scores_are_the_published_scorers(recorded: dict[str, Any]) -> None:
    """Those that TRACE and SEEKR share, and SEEKR's of C-STANCE, which takes the first letter."""
    assert recorded["trace"], "no recorded scores"
    for task, entry in recorded["trace"].items():
        references = [[reference] for reference in entry["references"]]
        metric = "first_letter" if task == "C-STANCE" else TASK_METRICS[task]
        pairs = list(zip(entry["predictions"], references, strict=True))
        value = 100 * sum(METRICS[metric](*pair, "") for pair in pairs) / len(pairs)
        key, percent = PUBLISHED_AS[metric]
        assert value == pytest.approx(entry["expected"][key] * percent, abs=1e-6), task


@pytest.mark.parametrize("metric", sorted({*TASK_METRICS.values()} - {"sari"}))
@pytest.mark.parametrize("prompt", ["p", "a b. c"])
def test_an_empty_answer_scores_0(metric: str, prompt: str) -> None:
    for references in (["a b. c"], ["p", "a"], ["..."], ["<STR_LIT>"]):
        assert score(metric, [""], [references], [prompt]) == 0.0


@settings(deadline=None)  # the first call imports the scorers
@given(st.text("aB .,\n<&-1'"), st.text("aB .,\n<&-1'", min_size=1), st.text(min_size=1))
def test_every_answer_has_a_score(prediction: str, reference: str, prompt: str) -> None:
    for metric in METRICS.values():
        assert 0.0 <= metric(prediction, [reference], prompt) <= 1.0


def test_first_letter() -> None:
    assert first_letter("B because", ["B\nSince"], "") == 1.0
    assert first_letter(" B", ["B"], "") == 0.0  # as published: nothing is stripped


def test_edit_similarity_writes_literals_out() -> None:
    written = "x = 'a>' + 0 , 12 , ''"
    code = "x = '<STR_LIT:a>>' + <NUM_LIT> , <NUM_LIT:12> , '<CHAR_LIT>'"
    assert edit_similarity(code, [written], "") == 1.0
    # two of three letters are in both: 1 − 2/6, in whole hundredths
    assert edit_similarity("abc", ["abd"], "") == 0.67
    assert edit_similarity("<STR_LIT>", ["<STR_LIT>"], "") == 0.0  # nothing is left of it


def test_rouge_l_union_of_sentences() -> None:
    # sentences in another order cost nothing: 5 of 5 and of 6 different words
    assert rouge_l_union("c d. a b x", ["a b y x. c d."], "") == pytest.approx(10 / 11)
    assert rouge_l_union("a b", ["b a"], "") == pytest.approx(0.5)
    assert rouge_l_union("...", ["a."], "") == 0.0
    # the package recurses over a sentence's words, here more than Python allows by default
    assert rouge_l_union("a", ["a" + " b" * 2000], "") == pytest.approx(2 / 3)


PACKAGE = [
    ("a b c", "a b c", 0.999999995),
    ("The cat sat.", "the cat sat.", 0.6666666616666668),
    ("the, cat", "the cat", 0.4999999950000001),
    ("a a a b", "a b", 0.999999995),
    ("b a. c d", "a b. d c", 0.4999999950000001),
    ("it is 3.5 km", "it is 3.5km", 0.6666666617283951),
    ("x y  z\nw", "x z w", 0.8571428522448981),
    ("The man was late . His car broke .", "His car broke . He was late .", 0.7692307642603551),
]
"""Reference, prediction, and f of `Rouge(["rouge-l"]).get_scores(reference, prediction)`."""


@pytest.mark.parametrize(("reference", "prediction", "expected"), PACKAGE)
def test_rouge_l_union_is_the_package_s(reference: str, prediction: str, expected: float) -> None:
    assert rouge_l_union(prediction, [reference], "") == pytest.approx(expected, abs=1e-12)


def test_sari_is_as_documented() -> None:
    value = score(
        "sari",
        ["About 95 you now get in."],
        [
            [
                "About 95 species are currently known.",
                "About 95 species are now accepted.",
                "95 species are now accepted.",
            ]
        ],
        ["About 95 species are currently accepted."],
    )
    assert value == pytest.approx(26.953601953601954, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Say "Hi, Bob."', ["say", '"', "hi", ",", "bob", ".", '"']),
        ("1,000.50 kg, 3-4", ["1,000.50", "kg", ",", "3", "-", "4"]),
        ("don't well-known e.g. re-\ndo", ["don't", "well-known", "e", ".", "g", ".", "redo"]),
        ("A&amp;B &lt;x&gt;", ["a", "&", "b", "<", "x", ">"]),
    ],
)
def test_sari_counts_words_of_mteval(text: str, words: list[str]) -> None:
    answer = " ".join(words)
    assert sari(text, [answer], "other") == sari(answer, [text], "other") == 1.0
    assert sari(f"{answer} x", [text], "other") < 1.0


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=7)


@given(WORDS, WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_sari_follows_its_definition(
    source: list[str], answer: list[str], targets: list[list[str]]
) -> None:
    def f1(p: float, r: float) -> float:
        return 2 * p * r / (p + r) if p + r else 0.0

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 1.0

    total = 0.0
    for n in range(1, 5):
        s, a, *each = (
            ["".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            for words in (source, answer, *targets)
        )
        grams = {*s, *a, *(gram for target in each for gram in target)}
        # of one gram: occurrences in source, answer (once per reference) and all references
        counts = [
            (len(each) * s.count(g), len(each) * a.count(g), sum(t.count(g) for t in each))
            for g in grams
        ]
        kept = [(min(s, a), min(s, a, r)) for s, a, r in counts if min(s, a)]
        to_keep = sum(min(s, r) for s, _, r in counts)
        recall = sum(good for _, good in kept) / to_keep if to_keep else 1.0
        total += f1(mean([good / all_ for all_, good in kept]), recall)
        new = [(a > 0, r > 0) for s, a, r in counts if not s]
        total += f1(mean([r for a, r in new if a]), mean([a for a, r in new if r]))
        total += mean([max(s - a - r, 0) / (s - a) for s, a, r in counts if s > a])
    value = sari(" ".join(answer), [" ".join(words) for words in targets], " ".join(source))
    assert value == pytest.approx(total / 12, abs=1e-9)


# -- streams

Rows = list[list[float | None]]
SCORE = st.floats(0, 100)


@st.composite
def matrices(draw: st.DrawFn, least: int = 1) -> Rows:
    size = draw(st.integers(least, 6))
    return [[draw(SCORE) for _ in range(i + 1)] for i in range(size)]


def same(value: float | None, expected: float) -> bool:
    return value is not None and value == pytest.approx(expected, abs=1e-9)


def every_metric(R: Any) -> dict[str, float | None]:
    """What a run reports, with single-task scores of 0."""
    return continual.summary(R, [0.0] * len(R))


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
    assert same(found["forward_transfer"], sum(R[j][j] - single[j] for j in range(T)) / T)


@given(st.lists(SCORE, min_size=2, max_size=6), st.data())
def test_the_standard_error_is_that_of_all_samples(population: Any, data: st.DataObject) -> None:
    """Over all samples, the mean of its square is the variance of the sample's mean."""
    count = data.draw(st.integers(2, len(population)))
    samples = list(combinations(population, count))
    squares = [continual.standard_error(sample, len(population)) ** 2 for sample in samples]
    assert fmean(squares) == pytest.approx(pvariance(map(fmean, samples)), abs=1e-9)


def test_the_errors_of_metrics_are_those_of_means_of_samples() -> None:
    whole, sampled = Drop(5.0), Drop(1.0, 4.0)
    lost = [Drops(whole, sampled), Drops(whole, Drop(2.0, 3.0)), Drops(None, None)]
    found = continual.standard_errors([3.0, 4.0, None, None], lost)
    assert found == {"average_performance": 1.25, "forgetting": pytest.approx(5 / 3)}
    assert continual.summary([[1.0]], lost=lost[:1])["forgetting"] == 1.0


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
    full = every_metric(R)
    R[i][j] = None
    holed = every_metric(R)
    last, diagonal, old = i == T - 1, i == j, j < T - 1
    needs = {
        "average_performance": last,
        "forgetting": old,
        "backward_transfer": old and (last or diagonal),
        "forward_transfer": diagonal,
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


def test_no_task_has_no_metric() -> None:
    assert set(every_metric([]).values()) == {None}


@given(matrices(least=2))
def test_a_stream_that_keeps_everything_forgets_nothing(R: Any) -> None:
    kept = [[R[j][j] for j in range(i + 1)] for i in range(len(R))]
    assert continual.forgetting(kept) == 0
    assert continual.backward_transfer(kept) == 0
    assert continual.average_performance(kept) == pytest.approx(
        sum(R[j][j] for j in range(len(R))) / len(R)
    )
