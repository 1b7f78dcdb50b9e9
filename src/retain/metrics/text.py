"""Metrics of single answers, as the Super-NaturalInstructions scorer computes them."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from retain.errors import RetainError

Metric = Callable[[str, Sequence[str]], float]


def normalise(text: str) -> str:
    """Lower case, punctuation removed, white space folded; articles stay."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(kept.split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalised prediction equals one of the normalised references, else 0."""
    return float(any(normalise(prediction) == normalise(reference) for reference in references))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words, best over the references."""
    return max(
        _scorer().score(prediction=prediction, target=reference)["rougeL"].fmeasure
        for reference in references
    )


METRICS: dict[str, Metric] = {"exact_match": exact_match, "rouge_l": rouge_l}


def score(metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean of a metric over examples, 0 to 100.

    Raises:
        RetainError: for a metric that does not exist.
    """
    if metric not in METRICS:
        raise RetainError(f"metric '{metric}': unknown; choose one of {', '.join(METRICS)}")
    values = [METRICS[metric](p, r) for p, r in zip(predictions, references, strict=True)]
    return 100.0 * sum(values) / len(values)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
