"""The losses of a SEEKR replay batch (arXiv 2411.06171, eq. 6 to 9)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.backbone.backbone import IGNORED

SMALL = 1e-8


def logit_loss(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Soft cross-entropy −Σ_v p_teacher log p_student, mean over the labelled positions.

    Args:
        student: logits (B, K, V).
        teacher: logits (B, K, V).
        targets: labels (B, K); −100 is left out.
    """
    labelled = targets != IGNORED
    log_p = F.log_softmax(student[labelled].float(), -1)
    return -(teacher[labelled].float().softmax(-1) * log_p).sum(-1).mean()


def attention_loss(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], counts: Tensor
) -> Tensor:
    """KL(teacher ‖ student) of attention weights over real keys.

    Averaged over heads and queries of a sample, then over samples, then over layers.

    Args:
        student: of each chosen layer (B, h, Q, S), with a graph.
        teacher: the same layers and shapes.
        counts: which keys of a sample are real, (B, S).
    """
    real = counts[:, None, None].bool()
    layers = []
    for name, p in teacher.items():
        ratio = (p + SMALL).log() - (student[name] + SMALL).log()
        layers.append((p * ratio).where(real, 0).sum(-1).mean())
    return torch.stack(layers).mean()
