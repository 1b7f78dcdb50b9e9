"""SAPT: Shared Attentive Learning and Selection (arXiv 2401.08295)."""

from retain.methods.sapt.method import Sapt

__all__ = ["Sapt"]
