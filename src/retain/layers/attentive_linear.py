"""Linear layers that mix their LoRA blocks by attention over the blocks' outputs (AM-LoRA).

h = W x + Σ_i g_i Δ_i x with Δ_i x = (α/r) B_i A_i x and Δ_0 = 0 (arXiv 2409.19611). Each block has
a selector: a dense layer M_i and a nonlinearity turn the block's output into a score. The scores of
all blocks become gates g. With z_i = A_i x, the dense layer's product is M_i Δ_i x =
(α/r) M_i B_i z_i, and M_i B_i is only (m, r). So scores are computed in rank space, z is mixed
there, and one product with all B follows. The output of a single block, (B, S, d_out), is never
computed.

In shapes, B is the batch size, S the sequence length, T the number of blocks, r their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.layers.pooled_linear import Factors, Mixture, PooledLinear, plus

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "none": lambda x: x,
}
Activation = Literal["silu", "tanh", "relu", "none"]
SMALL = 1e-12
Gate = Literal["softmax", "sparsemax", "sigmoid"]


@dataclass(eq=False, kw_only=True)
class Attending(Mixture):
    """Settings of the attention over a pool's blocks, and the gates of the last forward.

    If `weights` are set, the layers use them, as in any pool. Otherwise, if `on`, each layer
    computes its own gates.

    Attributes:
        activation: nonlinearity between the dense layer and the score.
        gate: how scores become gates: softmax, sparsemax or independent sigmoids.
        hidden: m, the width of the dense layers, if a second layer follows; None maps to the score
            directly.
        train_all: whether the selectors of older blocks stay trainable.
        on: False switches all blocks off.
        prompt: 1 where the next forward has a token of the prompt, (B, S). A sequence then shares
            the gates of the prompt's mean score. None gives each token its own gates.
        collects: whether the next forward's gates are kept; in a generation, those of the prompt.
        gates: the gates of that forward by layer, (B, S or 1, T + 1), zero block first.
    """

    activation: Activation
    gate: Gate
    hidden: int | None
    train_all: bool
    on: bool = False
    prompt: Tensor | None = None
    collects: bool = True
    gates: dict[AttentiveLinear, Tensor] = field(default_factory=dict)


class AttentiveLinear(PooledLinear):
    """A pooled linear layer with a selector over its blocks.

    While it attends, frozen blocks pass a gradient to their input.

    Attributes:
        old_M, M: dense layers M_i of the frozen and of the trainable selectors, (·, m, d_out).
        old_b, b: their biases, (·, m).
        old_v, v: second layers, (·, m); ones if `hidden` is None (then m = 1).
        zero: score of the zero block, (1,); without nonlinearity, under which it gets no gradient.
        reads_prompt: whether its inputs are the prompt's sequence; False in a decoder's layers.
    """

    old_M: Tensor
    old_b: Tensor
    old_v: Tensor
    mixture: Attending

    def __init__(
        self,
        base: nn.Linear,
        mixture: Mixture,
        old_block_gradient: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base, mixture, old_block_gradient, dropout)
        self.zero = nn.Parameter(self._empty(1))
        self.reads_prompt = True

    def clear(self) -> None:
        """Removes all blocks and their selectors."""
        super().clear()
        for name, shape in self._shapes().items():
            self.register_buffer(f"old_{name}", self._empty(0, *shape), persistent=False)
            setattr(self, name, None)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        m = self.mixture.hidden or 1
        return {"M": (m, self.d_out), "b": (m,), "v": (m,)}

    def grow_selector(self, generator: torch.Generator) -> None:
        """Adds the trainable selector of a new block: M (and v) random, b = 0."""
        m = self.mixture.hidden or 1
        M = torch.randn(1, m, self.d_out, generator=generator) / self.d_out**0.5
        v = torch.randn(1, m, generator=generator) / m**0.5 if self.mixture.hidden else None
        fresh = {
            "M": M,
            "b": torch.zeros(1, m),
            "v": torch.ones(1, m) if v is None else v,
        }
        for name, tensor in fresh.items():
            old = self.selector(name)
            new = tensor.to(self._old_A.device)
            if self.mixture.train_all:
                new, old = torch.cat([old, new]), old[:0]
            self.register_buffer(f"old_{name}", old, persistent=False)
            setattr(self, name, nn.Parameter(new))

    def selector(self, name: str) -> Tensor:
        """Returns M, b or v of all blocks, oldest first, without gradient."""
        trainable = getattr(self, name)
        old: Tensor = getattr(self, f"old_{name}")
        return old if trainable is None else torch.cat([old, trainable.detach()])

    def freeze_selector(self) -> None:
        """Moves the trainable selectors to the frozen ones."""
        for name in self._shapes():
            self.register_buffer(f"old_{name}", self.selector(name), persistent=False)
            setattr(self, name, None)

    def load_selector(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds the selector tensors that one task has trained, frozen.

        Args:
            tensors: by name, with the shapes of `selector_shapes`.
        """
        for name, shape in self._shapes().items():
            old = getattr(self, f"old_{name}")
            new = tensors.get(name, torch.ones(len(tensors["M"]), *shape)).to(old)
            stacked = new if self.mixture.train_all else torch.cat([old, new])
            self.register_buffer(f"old_{name}", stacked, persistent=False)
        if "zero" in tensors:
            with torch.no_grad():
                self.zero.copy_(tensors["zero"])

    def selector_shapes(self, blocks: int) -> dict[str, tuple[int, ...]]:
        """Returns shapes of the selector tensors trained when block number `blocks` is added."""
        count = blocks if self.mixture.train_all else 1
        shapes = {name: (count, *shape) for name, shape in self._shapes().items()}
        if not self.mixture.hidden:
            del shapes["v"]
        # With sigmoids the zero block has no influence.
        return shapes if self.mixture.gate == "sigmoid" else {**shapes, "zero": (1,)}

    def selector_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the selector's trainable tensors by name."""
        return {name: getattr(self, name) for name in self.selector_shapes(0)}

    def adapted(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d_in) to (B, S, d_out)."""
        if self.mixture.weights is not None or not self.mixture.on:
            return super().adapted(x)
        y: Tensor = self.base(x)
        x = x.to(self.old_A.dtype)
        # Frozen and trainable factors stay separate, so that backward skips the frozen ones.
        parts = [(x, self.old_A, self.old_B)] if len(self.old_A) else []
        if self.A is not None and self.B is not None:
            # Dropout is applied to the input of the trainable block only.
            parts.append((self._dropped(x), self.A.to(x.dtype), self.B.to(x.dtype)))
        z = torch.cat([F.linear(u, A) for u, A, _ in parts], 2)
        z = z.unflatten(2, (-1, self.rank))  # (B, S, T, r)
        gates = self._gates(self._scores(z, [B for _, _, B in parts]))  # (B, S or 1, T + 1)
        if self.mixture.collects:
            self.mixture.gates.setdefault(self, gates)
        scales = gates[:, :, 1:, None] * self.mixture.scale
        mixed = (z * scales.to(z.dtype)).flatten(2)  # (B, S, T · r)
        by_part = mixed.split([len(A) for _, A, _ in parts], 2)
        for part, (_, _, B) in zip(by_part, parts, strict=True):
            y = plus(y, part, B)
        return y

    def _scores(self, z: Tensor, factors: list[Tensor]) -> Tensor:
        """Computes scores (B, S, T + 1), zero block first, from z (B, S, T, r) and all B."""
        M_in_rank_space, b, v = self._selectors(factors)
        activation = ACTIVATIONS[self.mixture.activation]
        product = torch.einsum("bstr,tmr->bstm", z.to(b.dtype), M_in_rank_space)
        scores = (activation(product + b) * v).sum(3)  # (B, S, T)
        zero = self.zero.expand(*scores.shape[:2], 1)
        return torch.cat([zero.to(scores), scores], 2).float()

    def _selectors(self, factors: list[Tensor]) -> Factors:
        """Computes (α/r) M_i B_i (T, m, r), b and v (T, m); cached if no gradient is needed."""
        graph = torch.is_grad_enabled()
        selectors = None if graph else self.mixture.cache.get(self)
        if selectors is None:
            M, b, v = (
                torch.cat([getattr(self, f"old_{name}"), *_some(getattr(self, name))])
                for name in ("M", "b", "v")
            )
            by_block = [B.unflatten(1, (-1, self.rank)) for B in factors]  # (d_out, ·, r)
            parts = M.split([B.shape[1] for B in by_block])  # (·, m, d_out)
            products = [
                torch.einsum("tmd,dtr->tmr", part, B.to(part.dtype))
                for part, B in zip(parts, by_block, strict=True)
            ]
            selectors = self.mixture.scale * torch.cat(products), b, v
            if not graph:
                self.mixture.cache[self] = selectors
        return selectors

    def _gates(self, scores: Tensor) -> Tensor:
        """Turns scores (B, S, T + 1) into gates (B, S or 1, T + 1)."""
        prompt = self.mixture.prompt
        if prompt is not None:
            reused = self._reused(scores)
            if reused is not None:
                return reused
            if self.reads_prompt:
                share = prompt / prompt.sum(1, keepdim=True)  # (B, S)
                share = share.repeat_interleave(len(scores) // len(share), 0)[:, :, None]
                scores = (scores * share).sum(1, keepdim=True)
            else:
                scores = scores[:, :1]
        return to_gates(scores, self.mixture.gate)

    def _reused(self, scores: Tensor) -> Tensor | None:
        """Returns the prompt's gates in the later steps of a generation, else None."""
        prompt_gates = self.mixture.gates.get(self)
        if torch.is_grad_enabled() or prompt_gates is None or scores.shape[1] > 1:
            return None
        return prompt_gates.repeat_interleave(len(scores) // len(prompt_gates), 0)


def _some(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def to_gates(scores: Tensor, gate: Gate) -> Tensor:
    """Turns scores (…, n), zero block first, into gates (…, n)."""
    if gate == "sigmoid":  # gates are independent, so the zero block's has no influence
        return torch.cat([torch.zeros_like(scores[..., :1]), scores[..., 1:].sigmoid()], -1)
    return scores.softmax(-1) if gate == "softmax" else sparsemax(scores)


def entropy(gates: Tensor) -> Tensor:
    """Computes the entropy, in nats, of gates (…, n) normalised to sum 1; returns (…)."""
    p = gates / gates.sum(-1, keepdim=True).clamp(min=SMALL)
    return -(p * p.clamp(min=SMALL).log()).sum(-1)


def sparsemax(scores: Tensor) -> Tensor:
    """Projects scores (…, n) onto the simplex; low ones get 0 (arXiv 1602.02068, algorithm 1)."""
    ordered = scores.sort(-1, descending=True).values
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    excess = ordered.cumsum(-1) - 1
    count = (rank * ordered > excess).sum(-1, keepdim=True).clamp(min=1)  # NaN stays NaN
    return (scores - excess.gather(-1, count - 1) / count).clamp(min=0)
