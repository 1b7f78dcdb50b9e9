"""What both of SAPT's routers are: a softmax over one logit per task, from a prompt's embedding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.methods.shared.pseudo_samples import BATCH
from retain.tasks import Example


class SoftmaxRouter(nn.Module):
    """Weighs the blocks by a = softmax(logits of a prompt's pooled embedding e), a logit per block.

    Args:
        top_k: number of blocks with a weight other than 0; None stands for all.

    Attributes:
        centre: c (d,), what e is compared with.
    """

    centre: Tensor

    def __init__(self, top_k: int | None) -> None:
        super().__init__()
        self.top_k = top_k

    @abstractmethod
    def logits(self, e: Tensor) -> Tensor:
        """Computes the logits (B, T) from pooled embeddings e (B, d), always in float32."""

    @abstractmethod
    def task_keys(self) -> Tensor:
        """Returns what a prompt's query is compared with: a key per task, (T, d)."""

    def attention(self, e: Tensor) -> Tensor:
        """Computes the attention over the blocks (B, T) from pooled embeddings e (B, d)."""
        return F.softmax(self.logits(e), dim=-1)

    def ranked(self, attention: Tensor) -> Tensor:
        """Returns the numbers (B, T) by which the `top_k` blocks are the largest."""
        return attention.detach()

    def forward(self, e: Tensor) -> Tensor:
        """Computes the blocks' weights (B, T): the attention, or its `top_k` largest, rescaled."""
        attention = self.attention(e)
        if self.top_k is None or self.top_k >= attention.shape[1]:
            return attention
        index = self.ranked(attention).topk(self.top_k, dim=1).indices
        kept = torch.zeros_like(attention).scatter(1, index, attention.gather(1, index))
        return kept / kept.sum(1, keepdim=True)


def embedded(
    backbone: Backbone, prompts: Sequence[str], pooled: Callable[[Batch], Tensor]
) -> Tensor:
    """Computes pooled embeddings (N, d) of prompts; `pooled` maps a batch to (B, d)."""
    encoded = [backbone.encode(Example(prompt, ("",)), with_answer=False) for prompt in prompts]
    batches = [encoded[i : i + BATCH] for i in range(0, len(encoded), BATCH)]
    return torch.cat([pooled(backbone.collate(batch)) for batch in batches])
