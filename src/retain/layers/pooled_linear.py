"""A linear layer with LoRA blocks beside it, mixed per example.

Every adapted layer computes W x + Σ_i a_i (α/r) B_i A_i x (SAPT, arXiv 2401.08295, equation 6). One
weight vector a per example is shared by all layers. The factors of frozen blocks are stacked, so
that their mixture takes two matrix products for any number of blocks: z = A x in rank space, z
scaled by a, then B z, which is added where the layer's output is. The trainable block takes two
more.

On a bfloat16 backbone these products are in bfloat16, as the backbone's own are. Frozen blocks are
kept so; the block that is trained, and the newest frozen one, which may be trained again, are kept
in float32, since small steps would round to zero. Its gradient is rounded as under autocast.

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
        rank: r of every block.
        scale: α / r.
        dtype: of the frozen blocks, and of the products with all blocks.
        top_k: maximum number of frozen blocks with a weight per example; None for all.
        weights: a; None switches all blocks off.
        by_row: a · α / r, r times each, (B, T·r): one for each row of the stacked A.
        block: index of the block that has the full weight in every example; None for a mixture.
        cache: tensors that each layer computes once per generation, when no gradient is needed.
    """

    rank: int
    scale: float
    dtype: torch.dtype = torch.float32
    top_k: int | None = None
    weights: Tensor | None = field(default=None, init=False)
    by_row: Tensor | None = field(default=None, init=False)
    block: int | None = field(default=None, init=False)
    cache: dict[nn.Module, Factors] = field(default_factory=dict, init=False)

    def set(self, weights: Tensor | None, block: int | None = None) -> None:
        """Replaces the weights."""
        self.weights, self.block = weights, block
        self.by_row = None if weights is None else self._repeated(weights)
        self.cache.clear()

    def _repeated(self, weights: Tensor) -> Tensor:
        gates = (weights * self.scale).repeat_interleave(self.rank, 1)
        # What takes a gradient takes it from every layer, and sums it up in float32.
        return gates if gates.requires_grad else gates.to(self.dtype)


class PooledLinear(nn.Module):
    """One linear layer with its part of the pool's blocks.

    Attributes:
        A, B: the trainable block, (r, d_in) and (d_out, r), float32, or None.
        dropout: the share of the trainable block's input entries that training sets to zero.
        positions_first: whether the backbone hands this layer (S, B, d_in), as LED does.
    """

    _old_A: Tensor
    _old_B: Tensor
    _newest: tuple[Tensor, Tensor] | None  # as it was pushed

    def __init__(
        self,
        base: nn.Linear,
        mixture: Mixture,
        old_block_gradient: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.mixture, self.rank, self.dropout = mixture, mixture.rank, dropout
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
            self._newest = self._pushed[-1]
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
        return torch.zeros(size, device=self.base.weight.device)  # float32

    def clear(self) -> None:
        """Removes all blocks."""
        self._pushed: list[tuple[Tensor, Tensor]] = []
        self._newest = None
        self._old_A = self._empty(0, self.d_in).to(self.mixture.dtype)
        self._old_B = self._empty(self.d_out, 0).to(self.mixture.dtype)
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None

    def restart(self, generator: torch.Generator | None = None) -> None:
        """Replaces the trainable block by a fresh one: A as in peft, B zero."""
        A = nn.init.kaiming_uniform_(
            torch.empty(self.rank, self.d_in), a=5**0.5, generator=generator
        )
        self.A = nn.Parameter(A.to(self._old_A.device))
        self.B = nn.Parameter(self._empty(self.d_out, self.rank))

    def freeze(self) -> None:
        """Moves the trainable block to the frozen ones."""
        if self.A is not None and self.B is not None:
            self.push(self.A.detach(), self.B.detach())
            self.A = self.B = None

    def thaw(self) -> None:
        """Makes the newest frozen block trainable again."""
        if self.A is None:
            self._stack()
            if self._newest is None:
                raise RuntimeError("there is no frozen block to train again")
            self.A, self.B = (
                nn.Parameter(factor.to(self._old_A.device, copy=True)) for factor in self._newest
            )
            split = len(self._old_A) - self.rank
            self._old_A, self._old_B = self._old_A[:split].clone(), self._old_B[:, :split].clone()
            self._newest = None

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
        weights, gates, block = self.mixture.weights, self.mixture.by_row, self.mixture.block
        if weights is None or gates is None:
            return y
        frozen = len(self.old_A)  # n·r
        old = frozen // self.rank
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
        if len(gates) != len(x):
            gates = gates.repeat_interleave(len(x) // len(gates), 0)
        if old and (block is None or block < old):
            source = x if self.old_block_gradient else x.detach()
            y = _added(y, source, *self._frozen(gates[:, :frozen]))
        if self.A is not None and self.B is not None and block in (None, old):
            A, B = self.A.to(self._old_A.dtype), self.B.to(self._old_A.dtype)
            y = _added(y, self._dropped(x), A, B, gates[:, frozen:])
        return y

    def _dropped(self, x: Tensor) -> Tensor:
        """Applies dropout to the trainable block's input, in training; any shape."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _frozen(self, gates: Tensor) -> Factors:
        """Returns A, B and gates of the frozen blocks to compute, from gates (B, n·r) of all."""
        block, top_k = self.mixture.block, self.mixture.top_k
        if block is not None:
            span = slice(block * self.rank, (block + 1) * self.rank)
            return self.old_A[span], self.old_B[:, span], gates[:, span]
        if top_k is None or top_k * self.rank >= gates.shape[1]:
            return self.old_A, self.old_B, gates
        if torch.is_grad_enabled():
            return self._largest(gates, top_k)
        selected = self.mixture.cache.get(self)
        if selected is None or len(selected[2]) != len(gates):  # beam search widens the batch
            selected = self.mixture.cache[self] = self._largest(gates, top_k)
        return selected

    def merged(self, weights: Tensor) -> nn.Module:
        """Merges the frozen blocks into the base layer, W + Σ_i a_i (α/r) B_i A_i; returns it.

        Args:
            weights: a, (n,).
        """
        A, B = self.old_A.float(), self.old_B.float()
        gates = weights.to(A).repeat_interleave(self.rank) * self.mixture.scale
        delta = (B * gates) @ A  # (d_out, d_in)
        delta = delta.T if isinstance(self.base, Conv1D) else delta
        with torch.no_grad():
            self.base.weight += delta.to(self.weight)
        return self.base

    def _largest(self, gates: Tensor, count: int) -> Factors:
        """Selects each example's frozen blocks with the largest weights.

        Args:
            gates: of the frozen blocks, (B, n·r).
            count: k, the number of blocks to select.

        Returns:
            A (B, k·r, d_in), B (B, d_out, k·r) and their gates (B, k·r).
        """
        by_block = gates.unflatten(1, (-1, self.rank))  # (B, n, r)
        index = by_block[:, :, 0].topk(count, dim=1).indices  # (B, k)
        A = self.old_A.unflatten(0, (-1, self.rank))[index].flatten(1, 2)
        B = self.old_B.mT.unflatten(0, (-1, self.rank))[index].flatten(1, 2).mT
        chosen = by_block.gather(1, index[:, :, None].expand(-1, -1, self.rank))
        return A, B, chosen.flatten(1)


def _added(y: Tensor, x: Tensor, A: Tensor, B: Tensor, gates: Tensor) -> Tensor:
    """Computes y + B (gates ⊙ A x), with k = blocks · r.

    Args:
        y: (B, S, d_out).
        x: (B, S, d_in).
        A: (k, d_in), or (B, k, d_in) if each example has its own blocks.
        B: (d_out, k), or (B, d_out, k).
        gates: (B, k).
    """
    z = x.to(A.dtype) @ A.mT  # (B, S, k)
    return plus(y, z * gates[:, None].to(z.dtype), B)


def plus(y: Tensor, z: Tensor, B: Tensor) -> Tensor:
    """Computes y + B z, with y (B, S, d_out), z (B, S, k) and B (d_out, k) or (B, d_out, k)."""
    wide = y.to(z.dtype)  # another type than y's beside float16, whose range is too small for z
    if B.dim() == 2:
        total = torch.addmm(wide.flatten(0, 1), z.flatten(0, 1), B.mT).view(y.shape)
    else:
        total = torch.baddbmm(wide, z, B.mT)
    return total.to(y.dtype)
