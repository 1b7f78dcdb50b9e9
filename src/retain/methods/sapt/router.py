"""The published router: learned attention of a prompt over the blocks' keys (SAPT's SALS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.methods.base import Options, TaskContext
from retain.methods.sapt.softmax_router import SoftmaxRouter, embedded
from retain.methods.shared.whitening import generic_windows
from retain.tasks import Task

KEY_EXAMPLES = 256
"""Prompts of a task whose mean query is the initial key, at most."""


class AttentionOptions(Options):
    """Options of `router.kind: attention`.

    `rate` is its learning rate as a multiple of training.learning_rate.
    """

    hidden: PositiveInt = 100
    temperature: PositiveFloat | None = None
    centre: Literal["generic", "none"] = "generic"
    key: Literal["mean_query", "uniform"] = "mean_query"
    rate: PositiveFloat = 0.01


class Router(SoftmaxRouter):
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
        super().__init__(top_k)
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

    def task_keys(self) -> Tensor:
        """Returns K (T, d)."""
        return self.keys

    def logits(self, e: Tensor) -> Tensor:
        """Computes K q / τ (B, T) from pooled embeddings e (B, d), always in float32."""
        with torch.autocast(e.device.type, enabled=False):
            return self.query(e.float()) @ self.keys.T / self.temperature

    def ranked(self, attention: Tensor) -> Tensor:
        """Puts the newest block first in training, as it would get no gradient else."""
        ranked = attention.detach().clone()
        if self.training:
            ranked[:, -1] = 1.0  # no attention is larger
        return ranked

    def projection(self) -> dict[str, Tensor]:
        """Returns the tensors of the query projection by the names in the saved file."""
        return {
            "query.down": self.down.weight,
            "query.up": self.up.weight,
            "query.norm.weight": self.norm.weight,
            "query.norm.bias": self.norm.bias,
        }


class AttentionRouter(Router):
    """The router of a backbone, with one key per task, on pooled frozen token embeddings.

    Args:
        backbone: provides the embeddings.
        options: `centre: generic` subtracts `generic_centre` from pooled embeddings. A new `key`
            starts as the mean query of the task's prompts, or uniform in ±1.
        top_k: as in `Router`.
    """

    def __init__(self, backbone: Backbone, options: AttentionOptions, top_k: int | None) -> None:
        zero = torch.zeros(backbone.width, device=backbone.device)
        c = generic_centre(backbone) if options.centre == "generic" else zero
        super().__init__(backbone.width, options.hidden, options.temperature, c, top_k)
        self._backbone = backbone
        self._new_key = options.key
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
        return embedded(self._backbone, prompts, self._backbone.pooled_embedding)

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
    has in common leaves what is specific to a task.
    """
    return backbone.pooled_embedding(backbone.collate(generic_windows(backbone))).mean(0)
