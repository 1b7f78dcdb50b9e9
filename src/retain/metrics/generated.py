"""Measures of generated texts (pseudo-samples) against the real texts that they imitate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FOLDS = 5
LIMIT = 500
"""Maximum number of texts of each kind for the classifier; more hardly change the result."""
CHARACTERS = 2000
"""Number of characters read of each text, so that long documents do not take minutes."""
NGRAMS = (1, 2, 3)
BUCKETS = 4096
RIDGE = 0.1
"""Ridge penalty, relative to the mean squared length of a centred feature vector."""


def separability(generated: Sequence[str], real: Sequence[str]) -> float | None:
    """Measures how well a linear classifier on character n-grams separates generated from real.

    The result is the area under the ROC curve on held-out texts, as a mean over five folds that
    each have both kinds. It is 0.5 if the texts cannot be distinguished and 1 if they always can.
    With only ten generated texts it varies by about 0.1 between draws.

    Returns:
        0 to 1; None if one kind has fewer than five texts.
    """
    generated, real = spread(generated, LIMIT), spread(real, LIMIT)
    if min(len(generated), len(real)) < FOLDS:
        return None
    features = torch.stack([_features(text) for text in (*generated, *real)])
    with torch.autocast("cpu", enabled=False):  # a bfloat16 run would autocast this product
        gram = features @ features.T
    target = torch.tensor([1.0] * len(generated) + [-1.0] * len(real))
    fold = torch.tensor([i % FOLDS for texts in (generated, real) for i in range(len(texts))])
    areas = []
    for number in range(FOLDS):
        held_out = fold == number
        scores = _ridge(gram, target, ~held_out)[held_out]
        kind = target[held_out]
        areas.append(area(scores[kind > 0], scores[kind < 0]))
    return sum(areas) / FOLDS


def area(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve of positive (P,) and negative (N,) scores.

    It is the share of pairs in which the positive scores higher. A tie counts half.
    """
    above = positive[:, None] - negative
    return float(((above > 0).double() + 0.5 * (above == 0)).mean())


def distinct(rows: Iterable[Sequence[int]], n: int) -> float | None:
    """distinct-n: distinct n-grams / all n-grams, of token ids (Li et al., arXiv 1510.03055).

    It falls as the number of texts grows, so compare only equal numbers of texts.

    Args:
        rows: the token ids of each text.
        n: length of the n-grams.

    Returns:
        0 to 1; None if no text has n tokens.
    """
    ngrams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def duplicates(texts: Sequence[str]) -> int:
    """Counts the texts that repeat an earlier one, up to white space."""
    return len(texts) - len({_plain(text) for text in texts})


class Originals:
    """Index of real texts, to detect generated texts that copy one verbatim."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted({_plain(text) for text in texts})

    def has(self, text: str) -> bool:
        """Whether the text is a real text or its beginning (generation may have been cut)."""
        text = _plain(text)
        position = bisect_left(self._texts, text)
        return position < len(self._texts) and self._texts[position].startswith(text)


def spread(texts: Sequence[str], count: int) -> list[str]:
    """Selects at most `count` texts, evenly spaced."""
    step = max(1, len(texts) / count)
    return [texts[int(i * step)] for i in range(min(count, len(texts)))]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _features(text: str) -> Tensor:
    """Square roots of the relative frequencies of hashed character n-grams, (3 · 4096,).

    The part of each n has Euclidean length 1.
    """
    codes = torch.tensor([ord(c) for c in _plain(text)[:CHARACTERS]])
    parts = []
    for n in NGRAMS:
        hashed = torch.zeros(max(0, len(codes) - n + 1), dtype=torch.int64)
        for i in range(n):
            hashed = (hashed * 1_000_003 + codes[i : i + len(hashed)]) % 2_147_483_647
        counts = torch.bincount(hashed % BUCKETS, minlength=BUCKETS).float()
        parts.append((counts / counts.sum().clamp(min=1)).sqrt())
    return torch.cat(parts)


def _ridge(gram: Tensor, target: Tensor, train: Tensor) -> Tensor:
    """Scores all texts by ridge regression on the training texts, in its dual form.

    Args:
        gram: inner products of the texts' features, (N, N).
        target: +1 for generated and −1 for real texts, (N,).
        train: True for the K training texts, (N,).

    Returns:
        (N,).
    """
    kernel = gram[:, train]  # (N, K)
    train_kernel = kernel[train]  # (K, K)
    centred = kernel - kernel.mean(1, keepdim=True) - train_kernel.mean(0) + train_kernel.mean()
    train_kernel = centred[train]
    penalty = RIDGE * train_kernel.diagonal().mean().clamp(min=1e-6) * torch.eye(len(train_kernel))
    weights = torch.linalg.solve(train_kernel + penalty, target[train] - target[train].mean())
    return (centred * weights).sum(1)
