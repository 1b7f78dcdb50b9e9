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
KEY_EXAMPLES = 256
"""How many of a task's prompts its first key is the mean query of."""


class Router(nn.Module):
    """a = softmax(K q / τ), q = LayerNorm(SiLU(W_up W_down (e − c))) (arXiv 2401.08295, eq. 3-5).

    The paper has no centre c; zero is the paper's router. Trained are the newest key and the query
    projection, which carries over from task to task; older keys are frozen.

    Args:
        width: d of e, q and the keys.
        hidden: the width between W_down and W_up.
        temperature: τ; None is √d.
        centre: c (d,), subtracted from every pooled embedding.
        top_k: how many blocks keep a weight; None is all of them.
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
        """Freezes the newest key and adds another, (d,)."""
        if self.key is not None:
            self.old_keys = torch.cat([self.old_keys, self.key.detach()[None]])
        self.key = nn.Parameter(key.detach().clone())

    def query(self, e: Tensor) -> Tensor:
        """q (B, d) of pooled embeddings e (B, d); in float32, under autocast too."""
        with torch.autocast(e.device.type, enabled=False):
            q: Tensor = self.norm(F.silu(self.up(self.down(e.float() - self.centre))))
        return q

    @property
    def keys(self) -> Tensor:
        """K (T, d), oldest first."""
        return self.old_keys if self.key is None else torch.cat([self.old_keys, self.key[None]])

    def logits(self, e: Tensor) -> Tensor:
        """Pooled embeddings (B, d) → K q / τ, (B, T); in float32, under autocast too."""
        with torch.autocast(e.device.type, enabled=False):
            return self.query(e.float()) @ self.keys.T / self.temperature

    def attention(self, e: Tensor) -> Tensor:
        """Pooled embeddings (B, d) → attention over the blocks (B, T)."""
        return F.softmax(self.logits(e), dim=-1)

    def forward(self, e: Tensor) -> Tensor:
        """The blocks' weights (B, T): the attention, of which only the `top_k` largest stay.

        While it learns the newest block is one of them: without a weight it would get no gradient.
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
        """The query projection's tensors, by the names they are saved under."""
        return {
            "query.down": self.down.weight,
            "query.up": self.up.weight,
            "query.norm.weight": self.norm.weight,
            "query.norm.bias": self.norm.bias,
        }


class PromptRouter(Router):
    """The router on a backbone: it pools a prompt's frozen token embeddings and keeps a key a task.

    Args:
        backbone: gives the embeddings.
        hidden, temperature, top_k: as in `Router`.
        centre: what is subtracted from pooled embeddings, `generic_centre` or nothing.
        key: where a new key starts, at the mean query of the task's prompts or uniform in ±1.
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
        """The blocks' weights (B, T) for a batch of prompts."""
        weights: Tensor = self(self._backbone.pooled_embedding(batch))
        return weights

    def add_task(self, task: Task, context: TaskContext) -> None:
        """Freezes the newest key and adds the task's."""
        if self._new_key == "uniform":
            self.grow(torch.empty_like(self.centre).uniform_(-1, 1))
            return
        e = self.embed([example.prompt for example in task.train[:KEY_EXAMPLES]])
        with torch.no_grad():
            self.grow(self.query(e).mean(0))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Pooled embeddings of prompts, (N, d)."""
        rows = [
            self._backbone.encode(Example(prompt, ("",)), with_answer=False) for prompt in prompts
        ]
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        pooled = [self._backbone.pooled_embedding(self._backbone.collate(b)) for b in batches]
        return torch.cat(pooled)

    def trainable(self) -> list[nn.Parameter]:
        """The newest key and the query projection."""
        return list(self.parameters())

    def state(self) -> dict[str, Tensor]:
        """The query projection as it now is, the newest key, and the centre."""
        assert self.key is not None
        return {**self.projection(), "key": self.key, "centre": self.centre}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `state`: the same for each task."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.projection().items()}
        return {**shapes, "key": tuple(self.centre.shape), "centre": tuple(self.centre.shape)}

    def load_task(self, state: Mapping[str, Tensor]) -> None:
        """Adds a task's key; the query projection becomes that of this task."""
        with torch.no_grad():
            for name, tensor in (*self.projection().items(), ("centre", self.centre)):
                tensor.copy_(state[name])
        self.grow(state["key"].to(self.centre))


def generic_centre(backbone: Backbone) -> Tensor:
    """c (d,): the mean pooled embedding of windows of 100 tokens of plain English.

    Prompts share words, so the pooled embeddings of different tasks have a cosine near 1 and the
    published router cannot tell them apart within a short run. What they share is what any text
    has: subtracting it leaves what is particular to a task. The text ships with the package and is
    the same for all runs, so the centre looks at no task.
    """
    text = files("retain.methods.sapt").joinpath("generic.txt").read_text(encoding="utf-8")
    ids = backbone.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    windows: list[Features] = [
        {"input_ids": [0], "route_ids": ids[start : start + WINDOW]}
        for start in range(0, max(len(ids) - WINDOW, 1), WINDOW // 2)
    ]
    return backbone.pooled_embedding(backbone.collate(windows)).mean(0)
