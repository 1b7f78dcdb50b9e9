"""Sequential fine-tuning: the whole backbone learns every task in turn."""

from __future__ import annotations

from dataclasses import replace

from retain.methods.base import MethodConfig
from retain.methods.shared.sequential import Sequential
from retain.methods.shared.weights import FullWeights


class SeqFt(Sequential):
    """Sequential fine-tuning of the whole backbone."""

    Config = MethodConfig
    traits = replace(
        Sequential.traits,
        idea="full fine-tuning on every task in turn, with nothing against forgetting",
        lowers_disk="nothing in the settings; take seqlora",
        lowers_ram="nothing in the settings; take seqlora",
    )

    def make_weights(self, config: MethodConfig) -> FullWeights:
        """All of them."""
        return FullWeights(self.backbone)
