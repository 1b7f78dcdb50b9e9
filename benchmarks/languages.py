"""Forty tasks in other languages and scripts: eight kinds in each of the five of languages.yaml.

The sentences are made of short lists, so that they vary less than what people write; what they test
is a router whose first statistics are of English text. Training prompts have one of two wordings of
the instruction. Tests have the same, or a third one that no training prompt has (`unseen`), or
prompts are the sentences alone (`asked=False`). There are no answers: routing reads prompts only.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import yaml

from retain.tasks import Example, Task

FILE = Path(__file__).with_name("languages.yaml")
LANGUAGES = ("German", "French", "Spanish", "Chinese", "Arabic")


def tasks(
    languages: tuple[str, ...], train: int, test: int, unseen: bool = False, asked: bool = True
) -> list[Task]:
    """Makes the tasks of some languages, in a seeded order; no two prompts of a task are equal."""
    made = []
    listed = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for language in languages:
        for kind, task in listed[language]["tasks"].items():
            name = f"{language} {kind}"
            draw = random.Random(name)
            texts = sentences(task["texts"], listed[language]["lists"], train + test, draw)
            rows = []
            for number, text in enumerate(texts):
                wordings = task["ask"][2:] if unseen and number < test else task["ask"][:2]
                prompt = f"{draw.choice(wordings)}\n{text}" if asked else text
                rows.append(Example(prompt, ("-",)))
            made.append(Task(name, rows[test:], rows[:test], rows[:test]))
    random.Random(0).shuffle(made)
    return made


def sentences(
    patterns: list[str], lists: dict[str, list[Any]], count: int, draw: random.Random
) -> list[str]:
    """Fills the patterns' slots in turn, until so many different sentences are there."""
    found: dict[str, None] = {}
    for number in range(20 * count):
        pattern = patterns[number % len(patterns)]
        filled = re.sub(r"\{(\w+)\}", lambda slot: draw.choice(lists[slot.group(1)]), pattern)
        found[filled] = None
        if len(found) == count:
            break
    return list(found)
