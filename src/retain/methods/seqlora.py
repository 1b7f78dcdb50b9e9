"""Sequential LoRA: one LoRA learns every task in turn. The baseline that forgets."""

from __future__ import annotations

from dataclasses import replace

from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.sequential import Sequential


class SeqLora(Sequential):
    """Sequential LoRA."""

    Config = LoraMethodConfig
    traits = replace(
        Sequential.traits,
        idea="one LoRA learns every task in turn, with nothing against forgetting",
        stores="the LoRA as it was after the task",
        lowers_disk="method.rank",
        lowers_ram="method.rank",
        latest_only=(),
    )
