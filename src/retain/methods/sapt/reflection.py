"""Attentive reflection (ARM): pseudo-samples keep the attention of old tasks unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.methods.sapt.softmax_router import SoftmaxRouter


def padded(attention: Tensor, blocks: int) -> Tensor:
    """Pads attention (…, t) with zeros for later blocks, (…, blocks)."""
    return F.pad(attention, (0, blocks - attention.shape[-1]))


def divergence(stored: Tensor, logits: Tensor) -> Tensor:
    """Computes KL(stored ‖ softmax(logits)) per sample, (N,), in nats (arXiv 2401.08295, eq. 8).

    Args:
        stored: attention when the task was learned, (N, T).
        logits: logits of the current attention, (N, T).
    """
    return (torch.xlogy(stored, stored) - stored * F.log_softmax(logits, dim=-1)).sum(-1)


@dataclass
class Reflection:
    """The data that reflection keeps of every old task.

    Token embeddings are frozen, so a pseudo-sample's pooled embedding e never changes and is
    stored. A reflection step then costs one small MLP, whatever the length of the samples.

    Attributes:
        embeddings: per task the pooled embeddings of its pseudo-samples, (n, d).
        attention: per task the mean attention on its held-out inputs when it was learned, (t,).
    """

    embeddings: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)

    def add(self, embeddings: Tensor, attention: Tensor) -> None:
        """Adds a task with its pooled embeddings (n, d) and mean attention (t,)."""
        self.embeddings.append(embeddings)
        self.attention.append(attention)

    def loss(self, router: SoftmaxRouter, tasks: int | None = None) -> Tensor:
        """Computes Σ over old tasks of KL(stored ‖ current attention), mean over pseudo-samples.

        With `tasks` only so many old tasks are drawn at random, and the sum is scaled up to all.
        """
        count = len(self.embeddings)
        drawn = range(count) if tasks is None or tasks >= count else torch.randperm(count)[:tasks]
        embeddings = [self.embeddings[i] for i in drawn]
        e = torch.cat(embeddings)  # (N, d), all of these tasks at once
        logits = router.logits(e)  # (N, T), of the current attention
        stored = torch.cat(
            [
                padded(a, logits.shape[1]).expand(len(x), -1)
                for x, a in zip(embeddings, (self.attention[i] for i in drawn), strict=True)
            ]
        )  # (N, T)
        share = torch.cat([torch.full((len(x),), 1 / len(x)) for x in embeddings]).to(
            logits
        )  # (N,)
        return (divergence(stored, logits) * share).sum() * (count / len(drawn))
