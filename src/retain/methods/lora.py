"""The options of methods that keep LoRA blocks."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from retain.methods.base import MethodConfig


class LoraMethodConfig(MethodConfig):
    """Size and place of the blocks; `target_modules: null` is peft's default for the backbone."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: list[str] | None = None
