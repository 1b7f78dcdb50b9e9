"""O-LoRA: one LoRA per task, kept orthogonal to the input directions of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.methods.base import Presets, Weighting
from retain.methods.inclora import IncLora
from retain.methods.shared.lora import LoraMethodConfig
from retain.training.phase import Unit


class OLoraConfig(LoraMethodConfig):
    """Weight λ of the orthogonality term, and λ₂ (`l2_weight`) of the block's norm.

    With `weighting: relative` the term is the mean absolute cosine of pairs of matrix rows, divided
    by that of random rows: 1 for a block that ignores the older ones, 0 for an orthogonal one. The
    published term is a sum over layers and pairs. It grows with rank, depth and the number of
    tasks, and small rows make it small without being orthogonal. `preset: paper` has that, and the
    options of the published scripts.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "rank": 8,
            "alpha": 32.0,
            "dropout": 0.1,
            "weighting": "published",
            "weight": 0.5,
        },
    }

    weight: NonNegativeFloat = 0.5
    weighting: Weighting = "relative"
    l2_weight: NonNegativeFloat = 0.0


class OLora(IncLora):
    """IncLoRA + λ Σ_layers Σ_{i<t} ‖A_i A_tᵀ‖₁ (Wang et al., arXiv 2310.14152; λ = 0.5).

    The rows of A_i (r, d_in) are the directions of a layer's input that block i reads; t is the
    newest task. The paper squares the entries of the product; the published code sums their
    absolute values, as here. The code also adds λ₂ Σ_layers (‖A_t‖ + ‖B_t‖), with λ₂ = 0 by
    default.
    """

    Config = OLoraConfig
    units: ClassVar[Mapping[str, Unit]] = {"orthogonality": "step", "l2": "step"}
    traits = replace(
        IncLora.traits, idea="a LoRA per task on top of all earlier ones, kept orthogonal to them"
    )

    def __init__(self, backbone: Backbone, config: OLoraConfig) -> None:
        super().__init__(backbone, config)
        self.options = config

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, the orthogonality term, and the block's norms."""
        parts = super().loss(batch)
        if len(self.pool.blocks) > 1 and self.options.weight:
            parts["orthogonality"] = self.options.weight * self._overlap()
        if self.options.l2_weight:
            norms = torch.stack([factor.norm() for factor in self.pool.parameters()])
            parts["l2"] = self.options.l2_weight * norms.sum()
        return parts

    def _overlap(self) -> Tensor:
        """Computes the orthogonality term over all layers, a scalar without λ."""
        terms = []
        for layer in self.pool.layers.values():
            assert layer.A is not None
            with torch.autocast(layer.A.device.type, enabled=False):
                terms.append(overlap(layer.old_A.to(layer.A), layer.A, self.options.weighting))
        stacked = torch.stack(terms)
        return stacked.sum() if self.options.weighting == "published" else stacked.mean()


def overlap(old: Tensor, new: Tensor, weighting: Weighting) -> Tensor:
    """Returns how much the rows of `new` (r, d) overlap with those of `old` (n, d), a scalar.

    `published` is the sum of the absolute products, `relative` the mean absolute cosine, divided by
    √(2/(πd)), its value for random directions in many dimensions d.
    """
    if weighting == "published":
        return (old @ new.T).abs().sum()
    cosines = F.normalize(old, dim=1) @ F.normalize(new, dim=1).T  # (n, r)
    return cosines.abs().mean() / math.sqrt(2 / (math.pi * new.shape[1]))
