"""How much of a text is English, with which discovery compares texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from retain.methods.shared.whitening import generic_text

ENGLISH = 0.3
"""Share of English words below which a group's texts are told of. It is 0.49 and more of the tasks
of benchmarks/discovery.py in English, and 0.18 and less of those in other languages."""


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


@cache
def _english_words() -> frozenset[str]:
    return frozenset(_words(generic_text()))


def english_share(texts: Sequence[str]) -> float:
    """Returns the share of the texts' words that the packaged English text has; 1 without words."""
    words = [word for text in texts for word in _words(text)]
    return sum(word in _english_words() for word in words) / len(words) if words else 1.0
