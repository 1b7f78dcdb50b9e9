"""Attention distillation on a SEEKR replay batch (arXiv 2411.06171).

Each sample is compared with its teacher on the heads that its task chose, at the queries drawn for
the sample. A batch may mix tasks and lengths: its loss is the mean of the losses of its samples,
each computed alone.

Shapes: B samples, h heads, Q queries, S keys. A sample's tensors have no padding.
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
"""Added to attention weights before the logarithm."""


@dataclass(frozen=True)
class Attention:
    """The teacher's attention on one sample in one module, without padding.

    Attributes:
        heads: indices of the heads, (h,).
        positions: positions of the queries, from the sample's first token, (Q,).
        weights: attention weights, (h, Q, S).
    """

    heads: Tensor
    positions: Tensor
    weights: Tensor


Sample = Mapping[str, Attention]
"""The teacher's attention on one sample, by module."""


def starts(batch: Batch, module: AttentionModule) -> tuple[Tensor, Tensor]:
    """Returns where each sample's queries and keys start in the padded batch, (B,) each."""
    queries, keys = real_tokens(batch, module.queries), real_tokens(batch, module.keys)
    return queries.argmax(1), keys.argmax(1)


def wanted(
    samples: Sequence[Sample], batch: Batch, modules: Mapping[str, AttentionModule]
) -> dict[str, Wanted]:
    """Returns what to capture in a batch to compare each sample with its teacher, by module.

    In each module these are all heads that any sample has, at each sample's queries. A sample with
    fewer queries than another is padded with its first position. Modules that no sample has are
    left out.
    """
    wanted_by_module = {}
    for name, module in modules.items():
        attentions = [sample[name] for sample in samples if name in sample]
        if not attentions:
            continue
        query_starts, _ = starts(batch, module)  # (B,)
        most_queries = max(len(attention.positions) for attention in attentions)
        positions = query_starts[:, None].repeat(1, most_queries)  # (B, Q)
        for i, sample in enumerate(samples):
            if name in sample:
                queries = sample[name].positions.to(positions)  # (Q of the sample,)
                positions[i, : len(queries)] += queries
        heads = torch.cat([attention.heads for attention in attentions]).unique()  # (h,)
        wanted_by_module[name] = Wanted(heads.to(positions), positions)
    return wanted_by_module


def attention_loss(
    student: Mapping[str, Tensor],
    samples: Sequence[Sample],
    batch: Batch,
    modules: Mapping[str, AttentionModule],
    captured: Mapping[str, Wanted],
    scales: Sequence[float],
) -> Tensor:
    """Computes KL(teacher ‖ student) of attention weights over real keys, a scalar.

    It is the mean over queries and heads of a module, then over the modules of a sample, then over
    samples, each of which is divided by its scale.

    Args:
        student: by module the captured weights (B, h, Q, S), with a graph.
        samples: the teacher's attention on each sample.
        batch: the padded batch.
        modules: the model's attention modules.
        captured: the result of `wanted`, which `student` was captured by.
        scales: the value that counts as 1, by sample.
    """
    terms = []
    for name, q in student.items():
        module, heads = modules[name], captured[name].heads  # (h,)
        real = real_tokens(batch, module.keys)  # (B, S)
        _, key_starts = starts(batch, module)  # (B,)
        p = torch.zeros_like(q)  # the teacher's weights, (B, h, Q, S)
        share = torch.zeros(q.shape[:3], device=q.device)  # of each query in the mean, (B, h, Q)
        for i, sample in enumerate(samples):
            if name not in sample:
                continue
            teacher = sample[name]
            h, n, s = teacher.weights.shape
            chosen = torch.isin(heads, teacher.heads.to(heads)).nonzero()[:, 0]  # indices in heads
            p[i, chosen, :n, key_starts[i] : key_starts[i] + s] = teacher.weights.to(q)
            share[i, chosen, :n] = 1 / (h * n * len(sample) * len(samples) * scales[i])
        terms.append((divergence(p, q, real[:, None, None].bool()) * share).sum())
    return torch.stack(terms).sum()


def divergence(teacher: Tensor, student: Tensor, real: Tensor) -> Tensor:
    """Computes KL(teacher ‖ student) of attention weights (…, Q, S) over the real keys, (…, Q)."""
    ratio = (teacher + SMALL).log() - (student + SMALL).log()
    return (teacher * ratio).where(real, 0).sum(-1)


def sample_of(file: Mapping[str, Tensor], modules: Mapping[str, AttentionModule]) -> Sample:
    """Returns the attention in an example's file of teacher outputs."""
    return {
        name: Attention(
            file[f"heads.{index}"],
            file[f"positions.{module.queries}"],
            file[f"attention.{index}"],
        )
        for index, (name, module) in enumerate(modules.items())
        if f"heads.{index}" in file
    }
