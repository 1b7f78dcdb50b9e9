"""AM-LoRA: Attentional Mixture of LoRAs (arXiv 2409.19611)."""

from retain.methods.amlora.method import AmLora

__all__ = ["AmLora"]
