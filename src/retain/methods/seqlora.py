"""Sequential LoRA: one LoRA is trained on every task in turn, without protection."""

from __future__ import annotations

from dataclasses import replace

from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.sequential import Sequential


class SeqLora(Sequential):
    """W x + (α/r) B A x, where B and A are trained on one task after another.

    W is a frozen weight of the backbone, x its input, and r and α the rank and scale of the LoRA.
    """

    Config = LoraMethodConfig
    traits = replace(
        Sequential.traits,
        idea="one LoRA learns every task in turn, with nothing against forgetting",
        stores="the LoRA as it was after the task",
        lowers_disk="lower method.rank",
        lowers_ram="lower method.rank",
        latest_only=(),
    )
