"""Sequential full fine-tuning: the backbone is trained on every task in turn."""

from __future__ import annotations

from dataclasses import replace

from retain.methods.base import MethodConfig
from retain.methods.shared.sequential import Sequential


class SeqFt(Sequential):
    """Cross-entropy on one task after another; all weights of the backbone are trained."""

    Config = MethodConfig
    traits = replace(
        Sequential.traits,
        idea="full fine-tuning on every task in turn, with nothing against forgetting",
        lowers_disk="take seqlora, which trains a LoRA",
        lowers_ram="take seqlora, which trains a LoRA",
    )
    only_calls = True

    @classmethod
    def trains_backbone(cls, options: MethodConfig) -> bool:
        """Says so always."""
        return True
