"""Attentive reflection (ARM): pseudo-samples keep the attention of old tasks where it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.methods.sapt.router import Router


def padded(attention: Tensor, blocks: int) -> Tensor:
    """Attention (…, t) over (…, blocks): zero on those that came later."""
    return F.pad(attention, (0, blocks - attention.shape[-1]))


def divergence(stored: Tensor, logits: Tensor) -> Tensor:
    """KL(stored ‖ softmax(logits)) per sample, in nats (arXiv 2401.08295, eq. 8).

    Of stored attention (N, T) and logits (N, T) of the attention now: (N,).
    """
    return (torch.xlogy(stored, stored) - stored * F.log_softmax(logits, dim=-1)).sum(-1)


@dataclass
class Reflection:
    """What reflection needs of every old task.

    Token embeddings are frozen, so a pseudo-sample's pooled embedding never changes: with it
    stored, a reflection step costs one small MLP, whatever the sample's length.

    Attributes:
        embeddings: of each task, e of its pseudo-samples, (n, d).
        attention: of each task, its mean attention on held-out inputs when it was learned, (t,).
    """

    embeddings: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)

    def add(self, embeddings: Tensor, attention: Tensor) -> None:
        """Adds one task."""
        self.embeddings.append(embeddings)
        self.attention.append(attention)

    def loss(self, router: Router, tasks: int | None = None) -> Tensor:
        """Σ over old tasks of the mean over their pseudo-samples of KL(stored ‖ attention now).

        With `tasks` over so many of them, drawn at random, and scaled up to all.
        """
        count = len(self.embeddings)
        drawn = range(count) if tasks is None or tasks >= count else torch.randperm(count)[:tasks]
        embeddings = [self.embeddings[i] for i in drawn]
        e = torch.cat(embeddings)  # (N, d), all of these tasks at once
        now = router.logits(e)  # (N, T)
        stored = torch.cat(
            [
                padded(a, now.shape[1]).expand(len(x), -1)
                for x, a in zip(embeddings, (self.attention[i] for i in drawn), strict=True)
            ]
        )
        share = torch.cat([torch.full((len(x),), 1 / len(x)) for x in embeddings]).to(now)
        return (divergence(stored, now) * share).sum() * (count / len(drawn))
