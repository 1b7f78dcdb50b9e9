"""Statistics of texts' mean token embeddings: standardised by generic text, whitened within tasks.

    z = (ē − c) / σ                                                          (d,)
    Σ = scatter / freedom, shrunk towards its mean diagonal                  (d, d)
    cos(W z, W μ), WᵀW = Σ⁻¹

ē is the mean of a text's frozen token embeddings; c, σ and the first part of the scatter are of the
packaged generic text. Routers and discovery compare texts by this cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from retain.backbone import Backbone, Features

WINDOW = 100
"""Tokens per window of the generic text."""
GENERIC = 60
"""ν, the number of prompts that the generic text's covariance counts as."""
SHRINKAGE = 0.1
"""Share of the mean diagonal in Σ."""
FLOOR = 1e-3
"""Smallest σ, as a share of the mean σ."""
TINY = 1e-12
"""Stands for a spread of 0, where all windows of the generic text are the same to a tokenizer."""


def generic_text() -> str:
    """Returns the packaged text: English of several kinds."""
    return files("retain.methods.shared").joinpath("generic.txt").read_text(encoding="utf-8")


def generic_windows(backbone: Backbone) -> list[Features]:
    """Cuts the packaged plain English into windows of 100 tokens, half of each in the next.

    The text is the same for all runs, so what is derived from it does not depend on the tasks.
    """
    ids = backbone.tokenizer(generic_text(), add_special_tokens=False, verbose=False)["input_ids"]
    return [
        {"input_ids": [0], "route_ids": ids[start : start + WINDOW]}
        for start in range(0, max(len(ids) - WINDOW, 1), WINDOW // 2)
    ]


@dataclass(frozen=True)
class Standard:
    """c and σ of the generic text, (d,) each."""

    centre: Tensor
    spread: Tensor

    @classmethod
    def of(cls, e: Tensor) -> Standard:
        """Computes them from the windows' mean embeddings (windows, d)."""
        spread = e.std(0, correction=0)
        return cls(e.mean(0), spread.clamp(min=max(FLOOR * float(spread.mean()), TINY)))

    def __call__(self, e: Tensor) -> Tensor:
        """Returns z = (ē − c) / σ in float32."""
        return (e.float() - self.centre) / self.spread


def generic_scatter(z: Tensor) -> Tensor:
    """Computes ν Σ_generic (d, d) in float64 from standardised windows z (windows, d)."""
    # Not every device has float64.
    return GENERIC * torch.cov(z.double().cpu().T, correction=0)


def whitening(scatter: Tensor, freedom: int) -> Tensor:
    """Computes Wᵀ (d, d) in float64 from Σ's numerator and degrees of freedom.

    That is one Cholesky factorisation and one inversion of a triangle, 2 d³ / 3 multiplications.
    """
    covariance = scatter / freedom
    level = covariance.diagonal().mean().clamp(min=TINY)
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * identity
    return torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), identity, upper=False).T
