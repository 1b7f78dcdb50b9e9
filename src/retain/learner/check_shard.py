"""Check that what `training.shard` shares out can be, before a backbone is loaded."""

from __future__ import annotations

from typing import Any

from retain.backbone import BackboneConfig
from retain.errors import RetainError
from retain.methods import Method
from retain.training.config import Shard, TrainingConfig

ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that compute every number of a parameter by itself, and so a share as in the whole."""
WITHOUT = "set training.shard: optimizer, which shares out the optimizer's state alone"


def check_shard(
    method: type[Method],
    options: Any,
    backbone: BackboneConfig,
    training: TrainingConfig,
    shard: Shard,
) -> None:
    """Refuses settings under which several processes cannot share out what they are to.

    Args:
        method: the method's class.
        options: its checked options.
        backbone: how the backbone is loaded.
        training: the settings of a task.
        shard: what they are to share out.

    Raises:
        RetainError: naming the setting, and what to set instead.
    """
    if shard == "optimizer" and training.optim == "paged_adamw_8bit":
        raise RetainError(
            "training.shard: optimizer does not share out the pages of optim: paged_adamw_8bit; "
            "set training.optim: adamw_torch_fused, or training.shard: none"
        )
    if shard != "full":
        return
    if backbone.quantization is not None:
        raise RetainError(
            f"training.shard: full cannot share out weights in backbone.quantization: "
            f"{backbone.quantization}; {WITHOUT}"
        )
    if training.torch_compile:
        raise RetainError(
            "training.shard: full does not work with torch_compile: true; set it to false"
        )
    if not method.trains_backbone(options):
        return
    if not method.shares_out(options):
        raise RetainError(
            "training.shard: full: the method, under these options, reads or changes the weights "
            f"that it trains by itself, so that they have to be whole; {WITHOUT}"
        )
    if training.optim not in ELEMENTWISE:
        raise RetainError(
            f"training.shard: full does not share out what optim: {training.optim} computes; set "
            "training.optim: adamw_torch_fused"
        )
