"""Tasks that differ by a short instruction before a long text: 24 questions about four kinds.

A text joins inputs of one task of data/ until it has so many words. The questions are those of
benchmarks/four_hundred.py, before the text; all tasks about one kind have the same texts. So a
prompt's mean embedding is that of the text, but for the few words of the question.
"""

from __future__ import annotations

import random

from benchmarks import fifty, four_hundred
from retain.tasks import Example, Task
from retain.tasks.readers import read_long_sequence, read_superni

KINDS = (
    "superni/task002_quoref_answer_generation",
    "superni/task511_reddit_tifu_long_text_summarization",
    "superni/task1729_personachat_generate_next",
    "long_sequence/rte",
)


def tasks(words: int, train: int, test: int) -> list[Task]:
    """Makes the tasks with texts of so many words, in a seeded order."""
    made = []
    for kind in KINDS:
        read = read_superni if kind.startswith("superni") else read_long_sequence
        rows = read(fifty.DATA / kind, "train")
        random.Random(kind).shuffle(rows)
        long = texts([four_hundred.text_of(row) for row in rows], words, train + test)
        for name, (question, _) in four_hundred.QUESTIONS.items():
            asked = [Example(f"{question}\nText: {text}\nAnswer:", ("-",)) for text in long]
            made.append(Task(f"{kind} {name}", asked[test:], asked[:test], asked[:test]))
    random.Random(0).shuffle(made)
    return made


def texts(inputs: list[str], words: int, count: int) -> list[str]:
    """Joins inputs, each used once, to so many texts of so many words."""
    found: list[str] = []
    joined: list[str] = []
    for text in inputs:
        joined += text.split()
        if len(joined) >= words:
            found.append(" ".join(joined[:words]))
            joined = []
        if len(found) == count:
            return found
    raise ValueError(f"{len(found)} texts of {words} words, {count} are needed")
