"""A stream of four hundred tasks: 24 questions about 16 kinds of text, and the kinds' own tasks.

The texts are the inputs of data/superni and data/long_sequence, of the 16 tasks that have most.
Tasks about one kind have the same texts and differ by the question; tasks with one question differ
by the kind of text. Answers are computed, so the stream could be trained too; benchmarks/routing.py
reads its prompts only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from benchmarks.fifty import ASKED, DATA, input_of
from retain.tasks import Example
from retain.tasks.readers import read_long_sequence, read_superni

KINDS, TRAIN, TEST, WORDS = 16, 80, 4, 60
"""Kinds of text, examples of a task, and words of a text (longer ones are cut)."""


def _words(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    return lambda text: " ".join(change(text.split()))


def _number(pattern: str) -> Callable[[str], str]:
    return lambda text: str(len(re.findall(pattern, text)))


def _whether(pattern: str) -> Callable[[str], str]:
    return lambda text: "yes" if re.search(pattern, text) else "no"


QUESTIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    **ASKED,
    "small": ("Write the text in small letters.", str.lower),
    "second": ("Give the second word of the text.", _words(lambda words: words[1:2])),
    "third": ("Give the third word of the text.", _words(lambda words: words[2:3])),
    "longest": ("Give the longest word of the text.", lambda text: max(text.split(), key=len)),
    "shortest": ("Give the shortest word of the text.", lambda text: min(text.split(), key=len)),
    "opening": ("Give the first three words of the text.", _words(lambda words: words[:3])),
    "closing": ("Give the last three words of the text.", _words(lambda words: words[-3:])),
    "alternate": ("Give every other word of the text.", _words(lambda words: words[::2])),
    "sorted": ("Sort the words of the text by the alphabet.", _words(sorted)),
    "unique": (
        "Write each word of the text only once.",
        _words(lambda words: list(dict.fromkeys(words))),
    ),
    "initials": (
        "Give the first letter of each word of the text.",
        _words(lambda words: [word[0] for word in words]),
    ),
    "names": (
        "List the words of the text that start with a capital letter.",
        _words(lambda words: [word for word in words if word[0].isupper()] or ["none"]),
    ),
    "length": ("Count the characters of the text.", lambda text: str(len(text))),
    "vowels": ("Count the vowels of the text.", _number("[aeiouAEIOU]")),
    "commas": ("Count the commas of the text.", _number(",")),
    "digits": ("Say yes if there is a digit in the text, otherwise no.", _whether(r"\d")),
    "asks": ("Say yes if the text asks a question, otherwise no.", _whether(r"\?")),
    "joined": ("Write the text without spaces.", lambda text: "".join(text.split())),
    "hyphens": (
        "Put hyphens between the words of the text.",
        lambda text: "-".join(text.split()),
    ),
}
assert len(QUESTIONS) == 24


def tasks() -> dict[str, list[Example]]:
    """Returns the tasks by name, in a seeded order, with equally many examples each."""
    draw = random.Random(0)
    kinds: dict[str, list[Example]] = {}
    for folder in sorted([*DATA.glob("superni/*"), *DATA.glob("long_sequence/*")]):
        read = read_superni if folder.parent.name == "superni" else read_long_sequence
        rows = read(folder, "train")
        draw.shuffle(rows)
        kinds[folder.name.split("_")[0]] = rows
    every: dict[str, list[Example]] = {}
    for name in sorted(kinds, key=lambda name: (-len(kinds[name]), name))[:KINDS]:
        rows = [row for row in kinds[name] if len(text_of(row).split()) > 2][: TRAIN + TEST]
        every[name] = rows
        texts = [" ".join(text_of(row).split()[:WORDS]) for row in rows]
        for kind, (question, answer) in QUESTIONS.items():
            every[f"{name} {kind}"] = [
                Example(f"{question}\nText: {text}\nAnswer:", (answer(text),)) for text in texts
            ]
    shuffled = list(every.items())
    draw.shuffle(shuffled)
    return dict(shuffled)


def text_of(row: Example) -> str:
    """Returns a prompt without instruction, options and cue; these tasks' options are one line."""
    if "\nOption: " in f"\n{row.prompt}" and "\nText:" not in row.prompt:
        after_options = f"\n{row.prompt}".partition("\nOption: ")[2].partition("\n")[2]
        return after_options.rpartition("\nAnswer:")[0]
    return input_of(row)
