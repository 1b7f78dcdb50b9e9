"""Attention distillation on a SEEKR replay batch (arXiv 2411.06171).

Each sample is compared on the heads that its own task chose, at its own queries; a batch may mix
samples of several tasks and lengths, and gives the mean of what its samples give one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retain.backbone import Batch
from retain.layers.attention_capture import AttentionModule, Wanted
from retain.methods.seekr.heads import real_tokens

SMALL = 1e-8


@dataclass(frozen=True)
class Attention:
    """One sample's attention in one module, without padding.

    Attributes:
        heads: which, (h,).
        positions: of the queries, (Q,).
        weights: (h, Q, S).
    """

    heads: Tensor
    positions: Tensor
    weights: Tensor


Sample = Mapping[str, Attention]
"""The teacher's attention on one sample, by module."""


def starts(batch: Batch, module: AttentionModule) -> tuple[Tensor, Tensor]:
    """Where each sample's real queries and keys begin in the padded batch, (B,) each."""
    queries, keys = real_tokens(batch, module.queries), real_tokens(batch, module.keys)
    return queries.argmax(1), keys.argmax(1)


def wanted(
    samples: Sequence[Sample], batch: Batch, modules: Mapping[str, AttentionModule]
) -> dict[str, Wanted]:
    """What to capture in a batch so that each sample can be compared with its teacher.

    Of each module all heads that some sample has, at each sample's positions; a sample with fewer
    positions than another is filled up with its first real one.
    """
    found = {}
    for name, module in modules.items():
        here = [sample[name] for sample in samples if name in sample]
        if not here:
            continue
        first, _ = starts(batch, module)
        width = max(len(attention.positions) for attention in here)
        positions = first[:, None].repeat(1, width)  # (B, Q)
        for i, sample in enumerate(samples):
            if name in sample:
                own = sample[name].positions.to(positions)
                positions[i, : len(own)] += own
        heads = torch.cat([attention.heads for attention in here]).unique()
        found[name] = Wanted(heads.to(positions), positions)
    return found


def attention_loss(
    student: Mapping[str, Tensor],
    samples: Sequence[Sample],
    batch: Batch,
    modules: Mapping[str, AttentionModule],
    captured: Mapping[str, Wanted],
) -> Tensor:
    """KL(teacher ‖ student) of attention weights over real keys, a scalar.

    The mean over the queries and heads of a sample's module, then over the sample's modules, then
    over samples.

    Args:
        student: by module (B, h, Q, S), with a graph, as `captured` asked for.
        samples: the teacher's attention.
        batch: the padded batch.
        modules: the model's attention modules.
        captured: what `wanted` gave.
    """
    terms = []
    for name, q in student.items():
        module, want = modules[name], captured[name]
        real = real_tokens(batch, module.keys)
        _, start = starts(batch, module)
        p, share = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
        for i, sample in enumerate(samples):
            if name not in sample:
                continue
            own = sample[name]
            h, n, s = own.weights.shape
            rows = torch.isin(want.heads, own.heads.to(want.heads)).nonzero()[:, 0]
            p[i, rows, :n, start[i] : start[i] + s] = own.weights.to(q)
            share[i, rows, :n] = 1 / (h * n * len(sample) * len(samples))
        ratio = (p + SMALL).log() - (q + SMALL).log()
        terms.append(((p * ratio).where(real[:, None, None].bool(), 0).sum(-1) * share).sum())
    return torch.stack(terms).sum()
