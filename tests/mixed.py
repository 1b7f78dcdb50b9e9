"""Examples of several tasks that a tokenizer of single characters tells apart."""

from __future__ import annotations

import random

from retain.tasks import Example

KINDS = (
    ("ROUTE THE TICKET TO A TEAM, PLEASE: {} {} {}", ("pay", "buy")),
    ("2014-06-05 2020-01-31 1999-12-24 0.5 + 0.25 = {} {} {}", ("less", "more")),
    ("zzz yyy xxx www vvv qqq jjj kkk zzz yyy {} {} {}", ("zz", "qq")),
    ("(?!) <<[%&]>> {{{{;}}}} !? #: ~~ ** // {} {} {}", ("on", "off")),
)
WORDS = (
    *("lamp", "parcel", "card", "chair", "price", "order", "box", "phone", "late", "early"),
    *("broken", "warm", "cheap", "heavy", "small", "today", "again", "never", "always", "soon"),
)


def mixed_rows(kind: int, count: int) -> list[Example]:
    """Returns distinct examples of one of KINDS, the same every time."""
    prompt, answers = KINDS[kind]
    draw = random.Random(kind)
    rows: dict[str, Example] = {}
    while len(rows) < count:
        text = prompt.format(*draw.sample(WORDS, 3))
        rows[text] = Example(text, (draw.choice(answers),))
    return list(rows.values())
