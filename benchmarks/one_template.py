"""Six tasks whose prompts share one template: nothing but the text tells which task is asked.

    python -m benchmarks.one_template runs/one-template
    retain sweep runs/one-template/stream.yaml --seeds 0 1 2 \\
        --variants pertask sapt "sapt router.kind=attention generator.max_steps=10"

The tasks are six of data/superni without their instructions: sentiment of tweets, relations of two
words, emotions, science questions, sentiment of film reviews, and questions of common sense. Only
answers of at most three words are kept, and texts of at most eighty.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import yaml

from benchmarks.fifty import DATA, input_of
from retain.system.files import write_jsonl, write_text
from retain.tasks import Example
from retain.tasks.readers import read_superni

NAMES = ("task1687", "task1510", "task875", "task591", "task363", "task073")
TRAIN, TEST, WORDS, ANSWER = 400, 60, 80, 3
STREAM = {
    "stream": "one-template",
    "backbone": {
        "name": "models/SmolLM2-135M-Instruct",
        "dtype": "bfloat16",
        "attention": "eager",
    },
    "method": {"name": "sapt", "rank": 8, "alpha": 16},
    "training": {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
    "evaluation": {"max_new_tokens": 12, "batch_size": 60},
    "prompt": {"max_prompt_tokens": 160, "chat_template": False},
}


def examples(name: str, split: str) -> list[Example]:
    """Returns a task's short examples in the shared template, each input once."""
    (folder,) = (DATA / "superni").glob(f"{name}_*")
    found: dict[str, Example] = {}
    for row in read_superni(folder, split):
        text, answer = " ".join(input_of(row).split()), row.references[0]
        if len(text.split()) <= WORDS and len(answer.split()) <= ANSWER:
            found.setdefault(text, Example(f"Text: {text}\nAnswer:", (answer,)))
    return list(found.values())


def write(folder: Path) -> None:
    """Writes the tasks' files and the experiment file."""
    draw = random.Random(0)
    listed = []
    for name in NAMES:
        paths = {}
        for split, limit in (("train", TRAIN), ("test", TEST)):
            rows = examples(name, split)
            draw.shuffle(rows)
            paths[split] = folder / f"{name}.{split}.jsonl"
            write_jsonl(paths[split], [row.as_row() for row in rows[:limit]])
        listed.append({"name": name, "path": str(paths["train"]), "test": str(paths["test"])})
    experiment = {**STREAM, "tasks": listed, "seed": 0, "output": str(folder / "run")}
    write_text(folder / "stream.yaml", yaml.safe_dump(experiment, sort_keys=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
