"""Sequential full fine-tuning: the backbone is trained on every task in turn."""

from __future__ import annotations

from dataclasses import replace

from retain.methods.base import MethodConfig
from retain.methods.shared.sequential import Sequential
from retain.methods.shared.weights import FullWeights


class SeqFt(Sequential):
    """Cross-entropy on one task after another; all weights of the backbone are trained."""

    Config = MethodConfig
    traits = replace(
        Sequential.traits,
        idea="full fine-tuning on every task in turn, with nothing against forgetting",
        lowers_disk="take seqlora, which trains a LoRA",
        lowers_ram="take seqlora, which trains a LoRA",
    )

    def make_weights(self, config: MethodConfig) -> FullWeights:
        """Returns all weights of the backbone."""
        return FullWeights(self.backbone)
