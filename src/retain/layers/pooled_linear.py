"""A linear layer with LoRA blocks beside it, mixed per example.

Every adapted layer computes W x + Σ_i a_i (α/r) B_i A_i x (SAPT, arXiv 2401.08295, equation 6). One
weight vector a per example is shared by all layers. The factors of frozen blocks are stacked, so
that their mixture takes two matrix products for any number of blocks: z = A x in rank space, z
scaled by a, then B z. The trainable block takes two more.

In shapes, B is the batch size, S the sequence length, T the number of blocks, n that of frozen
blocks, r their rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retain.errors import RetainError
from retain.layers.targets import shape

Factors = tuple[Tensor, Tensor, Tensor]
"""Three tensors that a layer derives from its blocks, such as A, B and the weights of a mixture."""


@dataclass(eq=False)
class Mixture:
    """The weights a (B, T) of the next forward, read by every layer of one pool.

    They stay until they are replaced: during all steps of a generation, and during the
    recomputation of gradient checkpointing.

    Attributes:
        weights: a; None switches all blocks off.
        block: index of the block that has the full weight in every example; None for a mixture.
        top_k: maximum number of frozen blocks with a weight per example; None for all.
        cache: tensors that each layer computes once per generation, when no gradient is needed.
    """

    weights: Tensor | None = None
    block: int | None = None
    top_k: int | None = None
    cache: dict[nn.Module, Factors] = field(default_factory=dict)

    def set(self, weights: Tensor | None, block: int | None = None) -> None:
        """Replaces the weights."""
        self.weights, self.block = weights, block
        self.cache.clear()


class PooledLinear(nn.Module):
    """One linear layer with its part of the pool's blocks.

    Attributes:
        A, B: the trainable block, (r, d_in) and (d_out, r), or None.
        dropout: the share of the trainable block's input entries that training sets to zero.
        positions_first: whether the backbone hands this layer (S, B, d_in), as LED does.
    """

    _old_A: Tensor
    _old_B: Tensor

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scale: float,
        mixture: Mixture,
        old_block_gradient: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.rank, self.scale, self.mixture, self.dropout = rank, scale, mixture, dropout
        self.old_block_gradient = old_block_gradient
        self.positions_first = False
        self.d_in, self.d_out = shape(base)
        self.register_buffer("_old_A", None, persistent=False)
        self.register_buffer("_old_B", None, persistent=False)
        self.clear()
        self.train(base.training)  # a new module would train, and drop inputs, in a loaded run too

    @property
    def weight(self) -> Tensor:
        """The base layer's weight; some models read its dtype (T5's `wo`)."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def old_A(self) -> Tensor:
        """A of the frozen blocks, oldest first, (n·r, d_in)."""
        self._stack()
        return self._old_A

    @property
    def old_B(self) -> Tensor:
        """B of the frozen blocks, oldest first, (d_out, n·r)."""
        self._stack()
        return self._old_B

    def _stack(self) -> None:
        """Stacks all pushed blocks at once; one copy per block would cost quadratic time."""
        if self._pushed:
            # The model may have moved to another device since the push.
            As, Bs = (
                [factor.to(self._old_A) for factor in factors]
                for factors in zip(*self._pushed, strict=True)
            )
            self._old_A = torch.cat([self._old_A, *As])
            self._old_B = torch.cat([self._old_B, *Bs], dim=1)
            if self.mixture.top_k is not None:  # so that each selected block is contiguous
                self._old_B = self._old_B.mT.contiguous().mT
            self._pushed.clear()

    def _empty(self, *size: int) -> Tensor:
        return torch.zeros(size, device=self.base.weight.device)

    def clear(self) -> None:
        """Removes all blocks."""
        self._pushed: list[tuple[Tensor, Tensor]] = []
        self._old_A = self._empty(0, self.d_in)
        self._old_B = self._empty(self.d_out, 0)
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None

    def restart(self, generator: torch.Generator | None = None) -> None:
        """Replaces the trainable block by a fresh one: A as in peft, B zero."""
        A = nn.init.kaiming_uniform_(
            torch.empty(self.rank, self.d_in), a=5**0.5, generator=generator
        )
        self.A = nn.Parameter(A.to(self._old_A))
        self.B = nn.Parameter(self._empty(self.d_out, self.rank))

    def freeze(self) -> None:
        """Moves the trainable block to the frozen ones."""
        if self.A is not None and self.B is not None:
            self.push(self.A.detach(), self.B.detach())
            self.A = self.B = None

    def thaw(self) -> None:
        """Makes the newest frozen block trainable again."""
        if self.A is None:
            split = self.old_A.shape[0] - self.rank
            self.A = nn.Parameter(self.old_A[split:].clone())
            self.B = nn.Parameter(self.old_B[:, split:].clone())
            self._old_A, self._old_B = self.old_A[:split].clone(), self.old_B[:, :split].clone()

    def copy_block(self, block: int) -> None:
        """Sets the trainable block's factors to those of a frozen block."""
        if self.A is None or self.B is None:
            raise RuntimeError("there is no trainable block to copy to")
        span = slice(block * self.rank, (block + 1) * self.rank)
        with torch.no_grad():
            self.A.copy_(self.old_A[span])
            self.B.copy_(self.old_B[:, span])

    def push(self, A: Tensor, B: Tensor) -> None:
        """Adds one frozen block, A (r, d_in) and B (d_out, r)."""
        self._pushed.append((A, B))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d_in) to (B, S, d_out), or (S, B, d_in) to (S, B, d_out)."""
        if self.positions_first and x.dim() == 3:
            return self.adapted(x.transpose(0, 1)).transpose(0, 1).contiguous()
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d_in) to (B, S, d_out); B may be a multiple of the weights' (beam search).

        Raises:
            RetainError: if the input is not (batch, sequence, dim).
        """
        y: Tensor = self.base(x)
        weights = self.mixture.weights
        if weights is None:
            return y
        old = self.old_A.shape[0] // self.rank
        blocks = old + (self.A is not None)
        if x.dim() != 3:
            raise RetainError(
                f"method.target_modules: a target layer got input of shape {tuple(x.shape)}, "
                "expected (batch, sequence, dim); expert layers of a mixture of experts are not "
                "supported, remove them"
            )
        if x.shape[0] % weights.shape[0] or weights.shape[1] != blocks:
            raise RuntimeError(
                f"weights of shape {tuple(weights.shape)} do not fit input of shape "
                f"{tuple(x.shape)} and {blocks} blocks; route the batch before the forward"
            )
        block = self.mixture.block
        weights = weights.repeat_interleave(x.shape[0] // weights.shape[0], 0) * self.scale
        if old and (block is None or block < old):
            source = x if self.old_block_gradient else x.detach()
            A, B, gates = self._frozen(weights[:, :old])
            gates = gates.repeat_interleave(self.rank, 1)  # (B, selected blocks · r)
            y = y + _delta(source, A, B, gates).to(y.dtype)
        if self.A is not None and self.B is not None and block in (None, old):
            gates = weights[:, old:].expand(-1, self.rank)  # (B, r)
            y = y + _delta(self._dropped(x), self.A, self.B, gates).to(y.dtype)
        return y

    def _dropped(self, x: Tensor) -> Tensor:
        """Applies dropout to the trainable block's input, in training; any shape."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _frozen(self, weights: Tensor) -> Factors:
        """Returns A, B and weights of the frozen blocks to compute, from weights (B, n) of all."""
        block, top_k = self.mixture.block, self.mixture.top_k
        if block is not None:
            span = slice(block * self.rank, (block + 1) * self.rank)
            return self.old_A[span], self.old_B[:, span], weights[:, block : block + 1]
        if top_k is None or top_k >= weights.shape[1]:
            return self.old_A, self.old_B, weights
        if torch.is_grad_enabled():
            return self._largest(weights, top_k)
        selected = self.mixture.cache.get(self)
        if selected is None or len(selected[2]) != len(weights):  # beam search widens the batch
            selected = self.mixture.cache[self] = self._largest(weights, top_k)
        return selected

    def merged(self, weights: Tensor) -> nn.Module:
        """Merges the frozen blocks into the base layer, W + Σ_i a_i (α/r) B_i A_i; returns it.

        Args:
            weights: a, (n,).
        """
        gates = weights.to(self.old_A).repeat_interleave(self.rank) * self.scale
        delta = (self.old_B * gates) @ self.old_A  # (d_out, d_in)
        delta = delta.T if isinstance(self.base, Conv1D) else delta
        with torch.no_grad():
            self.base.weight += delta.to(self.weight)
        return self.base

    def _largest(self, weights: Tensor, count: int) -> Factors:
        """Selects each example's frozen blocks with the largest weights.

        Args:
            weights: weights of the frozen blocks, (B, n).
            count: k, the number of blocks to select.

        Returns:
            A (B, k·r, d_in), B (B, d_out, k·r) and their weights (B, k).
        """
        largest, index = weights.topk(count, dim=1)
        A = self.old_A.unflatten(0, (-1, self.rank))[index].flatten(1, 2)
        B = self.old_B.mT.unflatten(0, (-1, self.rank))[index].flatten(1, 2).mT
        return A, B, largest


def _delta(x: Tensor, A: Tensor, B: Tensor, gates: Tensor) -> Tensor:
    """Computes B (gates ⊙ A x), with k = blocks · r.

    Args:
        x: (B, S, d_in).
        A: (k, d_in), or (B, k, d_in) if each example has its own blocks.
        B: (d_out, k), or (B, d_out, k).
        gates: (B, k).
    """
    z = x.to(A.dtype) @ A.mT  # (B, S, k)
    return (z * gates[:, None].to(z.dtype)) @ B.mT  # (B, S, d_out)
