"""O-LoRA: one LoRA per task, learned in directions that earlier ones do not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.methods.base import Presets
from retain.methods.inclora import IncLora
from retain.methods.shared.lora import LoraMethodConfig
from retain.training.phase import Unit


class OLoraConfig(LoraMethodConfig):
    """λ of the orthogonality term; `l2_weight` is the published code's λ₂, of the block's size.

    The published term is a sum over layers and pairs of rows: it grows with rank, depth and older
    tasks, and small rows make it small without being orthogonal. With `normalised` it is the mean
    absolute cosine of the pairs instead, which no scale changes. `preset: paper` has the options
    of O-LoRA's scripts.
    """

    presets: ClassVar[Presets] = {
        "paper": {"rank": 8, "alpha": 32.0, "dropout": 0.1, "weight": 0.5},
    }

    weight: NonNegativeFloat = 0.5
    normalised: bool = False
    l2_weight: NonNegativeFloat = 0.0


class OLora(IncLora):
    """IncLoRA + λ Σ_layers Σ_{i<t} ‖A_i A_tᵀ‖₁ (Wang et al., arXiv 2310.14152; λ = 0.5).

    A_i (r, d_in) has as rows the directions of a layer's input that block i reads. The paper
    squares the entries of the product; the published code sums their absolute values, as here. It
    also adds λ₂ Σ_layers (‖A_t‖ + ‖B_t‖), with λ₂ = 0 unless it is set.
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
        """Cross-entropy on the task, the orthogonality term, and the norms of the block."""
        parts = super().loss(batch)
        if len(self.pool.blocks) > 1 and self.options.weight:
            parts["orthogonality"] = self.options.weight * self._overlap()
        if self.options.l2_weight:
            norms = torch.stack([factor.norm() for factor in self.pool.parameters()])
            parts["l2"] = self.options.l2_weight * norms.sum()
        return parts

    def _overlap(self) -> Tensor:
        terms = []
        for layer in self.pool.layers.values():
            assert layer.A is not None
            with torch.autocast(layer.A.device.type, enabled=False):
                terms.append(overlap(layer.old_A, layer.A, self.options.normalised))
        stacked = torch.stack(terms)
        return stacked.mean() if self.options.normalised else stacked.sum()


def overlap(old: Tensor, new: Tensor, normalised: bool) -> Tensor:
    """How much the rows of `new` (r, d) point along those of `old` (n, d): a scalar."""
    if normalised:
        return (F.normalize(old, dim=1) @ F.normalize(new, dim=1).T).abs().mean()
    return (old @ new.T).abs().sum()
