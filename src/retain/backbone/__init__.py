"""The pretrained model: loading, tokenization, answer loss, generation."""

from retain.backbone.backbone import Backbone, BackboneConfig, Batch, Features
from retain.backbone.loading import LoadedModel, load_backbone, wrap_loaded
from retain.backbone.out_of_memory import memory_advice
from retain.backbone.text import PromptConfig

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Batch",
    "Features",
    "LoadedModel",
    "PromptConfig",
    "load_backbone",
    "memory_advice",
    "wrap_loaded",
]
