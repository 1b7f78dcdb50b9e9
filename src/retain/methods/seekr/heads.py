"""Rating and selection of attention heads (SEEKR, arXiv 2411.06171, section 3.2).

Sensitivity measures how much a head matters for the loss, forgettability how much its attention
changes. Tensors over heads are (layers, heads), layers in the order in which the model calls its
attention modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.backbone.losses import IGNORED, cross_entropy_by_example
from retain.layers.attention_capture import (
    AttentionCapture,
    AttentionModule,
    Side,
    squared_gradient,
)

Measure = Literal["squares", "norms"]
"""How a sample counts: with its mean square (`squares`), or with the root of it (`norms`)."""


def real_tokens(batch: Batch, side: Side) -> Tensor:
    """Returns 1 at the tokens of the batch's sequences and 0 at padding, (B, S)."""
    return batch["attention_mask"] if side == "input_ids" else (batch["labels"] != IGNORED).long()


def sensitivity(
    backbone: Backbone,
    capture: AttentionCapture,
    modules: Mapping[str, AttentionModule],
    batch: Batch,
    measure: Measure,
) -> Tensor:
    """Measures how much the loss depends on each head's attention weights, mean over samples.

    The squared gradient is averaged over all entries of a sample's attention matrix, masked ones
    included, padding excluded. One backward pass gives the gradients of all samples, since a
    sample's loss depends on its attention alone.

    Args:
        backbone: its parameters may be frozen.
        capture: switched on.
        modules: the backbone's attention modules.
        batch: prompts with answers.
        measure: whether a sample counts with this mean square or with its root.

    Returns:
        (layers, heads), not yet normalised.
    """
    capture.clear()
    capture.keep_outputs = True
    embedding = backbone.embedding.weight
    frozen = not embedding.requires_grad
    embedding.requires_grad_(True)  # so that there is a graph from the first layer on
    with torch.enable_grad():
        loss = cross_entropy_by_example(*backbone.answer_logits(batch)).sum()
        outputs = [capture.outputs[name] for name in modules]
        gradients = torch.autograd.grad(loss, [output for output, _ in outputs])
    embedding.requires_grad_(not frozen)
    capture.keep_outputs = False
    capture.clear()
    per_layer = []
    for module, gradient, (_, value) in zip(modules.values(), gradients, outputs, strict=True):
        keys = real_tokens(batch, module.keys)  # (B, S)
        entries = real_tokens(batch, module.queries).sum(1) * keys.sum(1)  # (B,)
        values = value.detach().float() * keys[:, None, :, None]
        squares = squared_gradient(gradient.float(), values) / entries[:, None]
        per_layer.append(_measured(squares, measure).mean(0))  # (H,)
    return torch.stack(per_layer)


def normalised(per_head: Tensor) -> Tensor:
    """Divides each layer's values by their sum; a layer of zeros gets equal values.

    Without it layers would not be comparable.
    """
    total = per_head.sum(1, keepdim=True)
    return torch.where(total > 0, per_head / total, 1 / per_head.shape[1])


def forgettability(before: Tensor, after: Tensor, real: Tensor, measure: Measure) -> Tensor:
    """Measures how far attention weights moved while a task was learned.

    Args:
        before: attention weights of one layer before the task, (B, H, Q, S).
        after: the same after the task.
        real: 1 at the real keys of each sample, 0 at padding, (B, S).
        measure: whether a sample counts with its mean square change or with the root of it.

    Returns:
        (H,): the mean over queries and real keys of a sample, then over samples.
    """
    change = (after - before).square() * real[:, None, None]  # (B, H, Q, S)
    per_sample = change.sum((2, 3)) / (before.shape[2] * real.sum(1))[:, None]  # (B, H)
    return _measured(per_sample, measure).mean(0)


def _measured(mean_squares: Tensor, measure: Measure) -> Tensor:
    return mean_squares if measure == "squares" else mean_squares.sqrt()


def importance(
    sensitivities: Sequence[Tensor],
    forgettabilities: Sequence[Tensor],
    accumulate: Literal["sum_of_products", "product_of_sums"],
) -> Tensor:
    """Computes the importance over the tasks so far, Σ_t S_t F_t or (Σ_t S_t)(Σ_t F_t).

    S_t is the sensitivity and F_t the forgettability of task t, both (layers, heads), like the
    result.
    """
    s, f = torch.stack(list(sensitivities)), torch.stack(list(forgettabilities))
    return (s * f).sum(0) if accumulate == "sum_of_products" else s.sum(0) * f.sum(0)


def select(scores: Tensor, layer_budget: int, head_budget: int) -> Tensor:
    """Selects the layers with the largest summed score, then the best heads within them.

    Args:
        scores: (layers, heads).
        layer_budget: number of layers.
        head_budget: number of heads in all layers together.

    Returns:
        Boolean (layers, heads).
    """
    layers = scores.sum(1).topk(min(layer_budget, len(scores))).indices
    within = torch.full_like(scores, float("-inf"))
    within[layers] = scores[layers]
    count = min(head_budget, len(layers) * scores.shape[1])
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[within.flatten().topk(count).indices] = True
    return chosen.view_as(scores)
