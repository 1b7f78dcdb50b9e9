"""The pretrained model: loading, tokenization, answer loss, generation."""

from retain.backbone.backbone import Backbone, BackboneConfig, Batch, Features, PromptConfig
from retain.backbone.loading import LoadedModel, load_backbone, wrap_loaded
from retain.backbone.out_of_memory import memory_advice

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
