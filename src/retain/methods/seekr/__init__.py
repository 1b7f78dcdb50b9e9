"""SEEKR: selective attention-guided knowledge retention (arXiv 2411.06171)."""

from retain.methods.seekr.method import Seekr

__all__ = ["Seekr"]
