"""Cross-entropy over answers: of a whole batch, and by example."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a position that is no part of an answer."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K, V) over the targets (B, K) that are not −100."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def cross_entropy_by_example(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (B,) of each example's logits, as in `cross_entropy`."""
    per_token = F.cross_entropy(
        logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
    )  # (B, K)
    return per_token.sum(1) / (targets != IGNORED).sum(1)
