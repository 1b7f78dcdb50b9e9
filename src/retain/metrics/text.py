"""Metrics of single answers: those of the Super-NaturalInstructions scorer, and the full table."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from retain.errors import RetainError
from retain.metrics import trace

Metric = Callable[[str, Sequence[str], str], float]
"""A function of prediction, references and prompt that returns a score from 0 to 1."""


def normalise(text: str) -> str:
    """Lower-cases, removes ASCII punctuation, collapses white space; keeps articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(kept.split())


def exact_match(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Returns 1 if the normalised prediction equals a normalised reference, else 0.

    `normalise` removes case and punctuation, so "3.14" equals "314".
    """
    return float(any(normalise(prediction) == normalise(reference) for reference in references))


def rouge_l(prediction: str, references: Sequence[str], prompt: str) -> float:
    """F-measure of the longest common subsequence of stemmed words, best over the references.

    A word is a run of the letters a to z and digits, after lower-casing. Any other letter, such as
    one with an accent, separates words, and an answer in a non-Latin script scores 0.
    """
    return max(
        _scorer().score(prediction=prediction, target=reference)["rougeL"].fmeasure
        for reference in references
    )


def is_empty_reference(metric: str, reference: str) -> bool:
    """Whether the metric sees an empty reference, under which an empty answer would be correct."""
    return metric == "exact_match" and not normalise(reference)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "first_letter": trace.first_letter,
    "exact_answer": trace.exact_answer,
    "rouge_l_union": trace.rouge_l_union,
    "edit_similarity": trace.edit_similarity,
    "sari": trace.sari,
}


def check_metric(metric: str, where: str) -> None:
    """Raises RetainError for a metric name that is not in METRICS; `where` starts the message."""
    if metric not in METRICS:
        raise RetainError(
            f"{where}: metric '{metric}' is unknown; choose one of {', '.join(METRICS)}"
        )


def score(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    prompts: Sequence[str],
) -> float:
    """Returns the mean of a metric over examples, 0 to 100."""
    examples = zip(predictions, references, prompts, strict=True)
    values = [METRICS[metric](*example) for example in examples]
    return 100.0 * sum(values) / len(values)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
