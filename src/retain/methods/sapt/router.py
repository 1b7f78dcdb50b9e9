"""The router: attention of a prompt over the blocks' keys (SAPT's SALS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.backbone import Backbone, Batch, Features
from retain.methods.base import TaskContext
from retain.methods.shared.pseudo_samples import BATCH
from retain.tasks import Example, Task

WINDOW = 100
"""Tokens per window of the generic text."""
KEY_EXAMPLES = 256
"""Prompts of a task whose mean query is the initial key, at most."""


class Router(nn.Module):
    """a = softmax(K q / τ), q = LayerNorm(SiLU(W_up W_down (e − c))) (arXiv 2401.08295, eq. 3-5).

    a are the attention weights, e is a prompt's pooled embedding, and K holds a key per block. The
    paper has no centre c, which is c = 0. The newest key and the query projection W are trained;
    the projection carries over from task to task, older keys are frozen.

    Args:
        width: d of e, q and the keys.
        hidden: output width of W_down.
        temperature: τ; None stands for √d.
        centre: c (d,), subtracted from every pooled embedding.
        top_k: number of blocks with a weight other than 0; None stands for all.
    """

    old_keys: Tensor
    centre: Tensor

    def __init__(
        self,
        width: int,
        hidden: int,
        temperature: float | None,
        centre: Tensor,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.temperature = temperature or width**0.5
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("centre", centre)
        self.register_buffer("old_keys", torch.zeros(0, width))
        self.key: nn.Parameter | None = None

    def grow(self, key: Tensor) -> None:
        """Freezes the newest key and adds a trainable one, (d,)."""
        if self.key is not None:
            self.old_keys = torch.cat([self.old_keys, self.key.detach()[None]])
        self.key = nn.Parameter(key.detach().clone())

    def query(self, e: Tensor) -> Tensor:
        """Computes q (B, d) from pooled embeddings e (B, d), always in float32."""
        with torch.autocast(e.device.type, enabled=False):
            q: Tensor = self.norm(F.silu(self.up(self.down(e.float() - self.centre))))
        return q

    @property
    def keys(self) -> Tensor:
        """K (T, d), oldest first."""
        return self.old_keys if self.key is None else torch.cat([self.old_keys, self.key[None]])

    def logits(self, e: Tensor) -> Tensor:
        """Computes K q / τ (B, T) from pooled embeddings e (B, d), always in float32."""
        with torch.autocast(e.device.type, enabled=False):
            return self.query(e.float()) @ self.keys.T / self.temperature

    def attention(self, e: Tensor) -> Tensor:
        """Computes the attention over the blocks (B, T) from pooled embeddings e (B, d)."""
        return F.softmax(self.logits(e), dim=-1)

    def forward(self, e: Tensor) -> Tensor:
        """Computes the blocks' weights (B, T): the attention, or its `top_k` largest, rescaled.

        In training the newest block is always among the `top_k`, as it would get no gradient else.
        """
        attention = self.attention(e)
        if self.top_k is None or self.top_k >= attention.shape[1]:
            return attention
        compared = attention.detach().clone()
        if self.training:
            compared[:, -1] = 1.0  # no attention is larger
        index = compared.topk(self.top_k, dim=1).indices
        kept = torch.zeros_like(attention).scatter(1, index, attention.gather(1, index))
        return kept / kept.sum(1, keepdim=True)

    def projection(self) -> dict[str, Tensor]:
        """Returns the tensors of the query projection by the names in the saved file."""
        return {
            "query.down": self.down.weight,
            "query.up": self.up.weight,
            "query.norm.weight": self.norm.weight,
            "query.norm.bias": self.norm.bias,
        }


class PromptRouter(Router):
    """The router of a backbone, with one key per task, on pooled frozen token embeddings.

    Args:
        backbone: provides the embeddings.
        hidden, temperature, top_k: as in `Router`.
        centre: `generic` subtracts `generic_centre` from pooled embeddings, `none` nothing.
        key: a new key starts as the mean query of the task's prompts, or uniform in ±1.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden: int,
        temperature: float | None,
        top_k: int | None,
        centre: Literal["generic", "none"],
        key: Literal["mean_query", "uniform"],
    ) -> None:
        zero = torch.zeros(backbone.width, device=backbone.device)
        c = generic_centre(backbone) if centre == "generic" else zero
        super().__init__(backbone.width, hidden, temperature, c, top_k)
        self._backbone = backbone
        self._new_key = key
        self.to(backbone.device).eval()

    def weights(self, batch: Batch) -> Tensor:
        """Computes the blocks' weights (B, T) for a batch of prompts."""
        weights: Tensor = self(self._backbone.pooled_embedding(batch))
        return weights

    def add_task(self, task: Task, context: TaskContext) -> None:
        """Freezes the newest key and adds a trainable one for the task."""
        if self._new_key == "uniform":
            self.grow(torch.empty_like(self.centre).uniform_(-1, 1))
            return
        e = self.embed([example.prompt for example in task.train[:KEY_EXAMPLES]])
        with torch.no_grad():
            self.grow(self.query(e).mean(0))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Computes the pooled embeddings of prompts, (N, d)."""
        encoded = [
            self._backbone.encode(Example(prompt, ("",)), with_answer=False) for prompt in prompts
        ]
        batches = [encoded[i : i + BATCH] for i in range(0, len(encoded), BATCH)]
        pooled = [self._backbone.pooled_embedding(self._backbone.collate(b)) for b in batches]
        return torch.cat(pooled)

    def trainable(self) -> list[nn.Parameter]:
        """Returns the newest key and the query projection."""
        return list(self.parameters())

    def state(self) -> dict[str, Tensor]:
        """Returns the current query projection, the newest key and the centre."""
        assert self.key is not None
        return {**self.projection(), "key": self.key, "centre": self.centre}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of `state`, the same for each task."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.projection().items()}
        return {**shapes, "key": tuple(self.centre.shape), "centre": tuple(self.centre.shape)}

    def load_task(self, state: Mapping[str, Tensor]) -> None:
        """Adds a saved task's key and takes over its query projection."""
        with torch.no_grad():
            for name, tensor in (*self.projection().items(), ("centre", self.centre)):
                tensor.copy_(state[name])
        self.grow(state["key"].to(self.centre))


def generic_centre(backbone: Backbone) -> Tensor:
    """Computes the centre c (d,): the mean pooled embedding of 100-token windows of plain English.

    Prompts share common words, so the pooled embeddings of different tasks have a cosine near 1,
    and the published router cannot distinguish them within a short run. Subtracting what any text
    has in common leaves what is specific to a task. The text is part of the package and the same
    for all runs, so the centre does not depend on the tasks.
    """
    text = files("retain.methods.sapt").joinpath("generic.txt").read_text(encoding="utf-8")
    ids = backbone.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    windows: list[Features] = [
        {"input_ids": [0], "route_ids": ids[start : start + WINDOW]}
        for start in range(0, max(len(ids) - WINDOW, 1), WINDOW // 2)
    ]
    return backbone.pooled_embedding(backbone.collate(windows)).mean(0)
