"""Names for groups of examples: words that most of a group's prompts have, and no other group's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from retain.tasks import Example

WORD = re.compile(r"[^\W\d_]{3,}")
WORDS = 3
"""Words of a name."""


def names_of(groups: Sequence[Sequence[Example]], taken: Sequence[str]) -> list[str]:
    """Names groups by their distinctive words, in the order of a prompt; none is as one of `taken`.

    A word counts by the share of the group's prompts that have it, less the largest share in
    another group.
    """
    shares = [_shares(group) for group in groups]
    names: list[str] = []
    for group, share in zip(groups, shares, strict=True):
        others = [other for other in shares if other is not share]
        prompt = min((example.prompt for example in group), key=lambda text: (len(text), text))
        place = {word: i for i, word in reversed(list(enumerate(_words(prompt))))}
        ranks = {
            word: (
                -round(value - max((other.get(word, 0.0) for other in others), default=0.0), 2),
                place.get(word, len(place)),
                word,
            )
            for word, value in share.items()
        }
        best = sorted(share, key=ranks.__getitem__)[:WORDS]
        best.sort(key=lambda word: place.get(word, len(place)))
        names.append(free_name("-".join(best) or "group", (*taken, *names)))
    return names


def free_name(name: str, taken: Sequence[str]) -> str:
    """Returns the name, with the first number from 2 that makes it differ from those taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _shares(group: Sequence[Example]) -> dict[str, float]:
    """Returns the share of the group's prompts that have a word, by word."""
    counts = Counter(word for example in group for word in set(_words(example.prompt)))
    return {word: count / len(group) for word, count in counts.items()}
