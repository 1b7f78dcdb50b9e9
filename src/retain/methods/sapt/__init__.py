"""SAPT: Shared Attentive Learning and Selection (arXiv 2401.08295)."""

from retain.methods.sapt.method import Sapt, SaptPrompt

__all__ = ["Sapt", "SaptPrompt"]
