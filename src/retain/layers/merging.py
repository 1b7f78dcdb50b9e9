"""Blocks of a pool merged with those that are like them.

Blocks that become one are replaced by the mean of their ΔW = B A over the tasks that they are of,
and this by its best approximation of the pool's rank: the truncated singular value decomposition
(Eckart and Young). A mixture of the old blocks then becomes the merged one, with their weights
summed. All of it is computed in float64 on the CPU.

In shapes, N is the number of blocks, r their rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.layers.lora_pool import LoraPool


def cosines(pool: LoraPool) -> Tensor:
    """Computes the cosines of the frozen blocks' ΔW over all layers, (N, N).

    ⟨B_i A_i, B_j A_j⟩ is the sum over the entries of (B_iᵀ B_j) ⊙ (A_i A_jᵀ), so no ΔW is formed.
    """
    total = torch.zeros(())
    for layer in pool.layers.values():
        A, B = layer.old_A.cpu().double(), layer.old_B.cpu().double()
        products = (B.T @ B) * (A @ A.T)  # (N r, N r)
        total = total + products.unflatten(1, (-1, pool.rank)).sum(2).T.unflatten(
            1, (-1, pool.rank)
        ).sum(2)
    norms = total.diagonal().clamp(min=torch.finfo(total.dtype).tiny).sqrt()
    return total / norms / norms[:, None]


def merged(pool: LoraPool, groups: Sequence[int], shares: Sequence[int]) -> dict[str, Tensor]:
    """Merges the frozen blocks of each group; a block alone keeps its bits.

    Args:
        pool: with N frozen blocks, and none that is trained.
        groups: each block's group.
        shares: the number of tasks that each block is of.

    Returns:
        Per layer `<name>.A` (groups · r, d_in) and `<name>.B` (d_out, groups · r).
    """
    factors = {}
    for name, layer in pool.layers.items():
        As = layer.old_A.cpu().float().split(pool.rank)
        Bs = layer.old_B.cpu().float().split(pool.rank, 1)
        pairs = []
        for group in range(max(groups) + 1):
            inside = [i for i, other in enumerate(groups) if other == group]
            if len(inside) == 1:
                pairs.append((As[inside[0]], Bs[inside[0]]))
                continue
            tasks = sum(shares[i] for i in inside)
            A = torch.cat([As[i].double() for i in inside])
            B = torch.cat([Bs[i].double() * (shares[i] / tasks) for i in inside], 1)
            pairs.append(truncated(A, B, pool.rank))
        factors[f"{name}.A"] = torch.cat([A for A, _ in pairs]).contiguous()
        factors[f"{name}.B"] = torch.cat([B for _, B in pairs], 1).contiguous()
    return factors


def truncated(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the factors of the best approximation of B A by a matrix of this rank, in float32.

    Args:
        A: (k, d_in).
        B: (d_out, k).
        rank: r.

    Returns:
        A (r, d_in) and B (d_out, r), of the same size: each has the roots of the singular values.
    """
    rows, inner_A = torch.linalg.qr(A.T)  # (d_in, ·), (·, k)
    columns, inner_B = torch.linalg.qr(B)  # (d_out, ·), (·, k)
    U, S, V = torch.linalg.svd(inner_B @ inner_A.T, full_matrices=False)
    roots = S[:rank].sqrt()
    new_A = (roots[:, None] * V[:rank]) @ rows.T
    new_B = columns @ (U[:, :rank] * roots)
    missing = rank - len(roots)  # of a layer that is narrower than the rank
    return F.pad(new_A, (0, 0, 0, missing)).float(), F.pad(new_B, (0, missing)).float()
