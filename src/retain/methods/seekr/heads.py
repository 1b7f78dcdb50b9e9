"""Which attention heads matter, and which forget (SEEKR, arXiv 2411.06171, section 3.2).

Tensors over heads are (layers, heads), layers in the order in which the model calls its attention
modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.backbone.backbone import IGNORED
from retain.layers.attention_capture import AttentionCapture, squared_gradient


def sensitivity(backbone: Backbone, capture: AttentionCapture, batch: Batch) -> Tensor:
    """Mean squared gradient of a sample's loss with respect to a head's attention weights.

    The gradient is taken sample by sample, in one backward pass (a sample's loss depends on its own
    attention only), and averaged over all S × S entries of a sample, masked ones included, then
    over samples. Padding does not count.

    Args:
        backbone: a decoder-only model.
        capture: switched on.
        batch: prompts with answers.

    Returns:
        (layers, heads), not yet normalised.
    """
    capture.clear()
    capture.keep_outputs = True
    with torch.enable_grad():
        logits, targets = backbone.answer_logits(batch)
        tokens = F.cross_entropy(
            logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
        )
        loss = (tokens.sum(1) / (targets != IGNORED).sum(1)).sum()
        outputs = list(capture.outputs.values())
        gradients = torch.autograd.grad(loss, [output for output, _ in outputs])
    capture.keep_outputs = False
    capture.clear()
    real = batch["attention_mask"]
    entries = real.sum(1).square()[:, None]  # (B, 1)
    found = []
    for gradient, (_, value) in zip(gradients, outputs, strict=True):
        value = value.detach() * real[:, None, :, None]
        squares = squared_gradient(gradient.float(), value.float())
        found.append((squares / entries).mean(0))
    return torch.stack(found)


def normalised(per_head: Tensor) -> Tensor:
    """Divides each layer's values by their sum, so that layers compare."""
    return per_head / per_head.sum(1, keepdim=True)


def forgettability(before: Tensor, after: Tensor, counts: Tensor) -> Tensor:
    """Mean squared change of attention weights while a task was learned.

    Args:
        before: weights of one layer, (B, H, Q, S).
        after: the same after the task.
        counts: which keys of a sample are real, (B, S).

    Returns:
        (H,), averaged over queries and real keys of a sample, then over samples.
    """
    change = (after - before).square() * counts[:, None, None]
    per_sample = change.sum((2, 3)) / (before.shape[2] * counts.sum(1))[:, None]
    return per_sample.mean(0)


def select(importance: Tensor, layer_budget: int, head_budget: int) -> Tensor:
    """The top layers by summed importance, then the top heads over these layers together.

    Args:
        importance: (layers, heads).
        layer_budget: how many layers.
        head_budget: how many heads in all.

    Returns:
        Boolean (layers, heads).
    """
    layers = importance.sum(1).topk(min(layer_budget, len(importance))).indices
    within = torch.full_like(importance, float("-inf"))
    within[layers] = importance[layers]
    count = min(head_budget, len(layers) * importance.shape[1])
    chosen = torch.zeros(importance.numel(), dtype=torch.bool, device=importance.device)
    chosen[within.flatten().topk(count).indices] = True
    return chosen.view_as(importance)
