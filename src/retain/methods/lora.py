"""What the methods that keep LoRA blocks share."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from retain.backbone import Backbone
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import Method, MethodConfig


class LoraMethodConfig(MethodConfig):
    """Size and place of the blocks; `target_modules: null` is peft's default for the backbone."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: list[str] | None = None


class LoraMethod(Method):
    """A method whose blocks live in one `LoraPool`."""

    def __init__(
        self, backbone: Backbone, config: LoraMethodConfig, old_block_gradient: bool = False
    ) -> None:
        self.backbone = backbone
        self.options = config
        self.pool = LoraPool(
            backbone.model, config.target_modules, config.rank, config.alpha, old_block_gradient
        )
