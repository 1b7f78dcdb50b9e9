"""Effect of noise and rewording in the test prompts on a run's answers and attention.

    python -m benchmarks.shift runs/sweep/superni-short/sapt-0

`noise` swaps, drops or doubles a letter in a tenth of a prompt's words, from a fixed seed;
`reworded` puts other words for those that instructions use. `mean move` is half the L1 distance
of a prompt's weights from those without the shift, as shares of 1: with AM-LoRA's zero block, or
divided by their sum where gates are sigmoids. (SARI compares an answer with its prompt, and so
moves with it.) Nothing is written into the runs.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.alignment import unnormalised, whole
from retain import Learner, Task
from retain.evaluation.answers import Evaluation, evaluate
from retain.system.progress import ConsoleProgress, Progress
from retain.tasks import Example

SHARE = 0.1
WORDS = {
    "task": "exercise",
    "given": "shown",
    "classify": "sort",
    "sentence": "statement",
    "tweet": "short message",
    "answer": "reply",
    "question": "query",
    "generate": "write",
    "determine": "decide",
    "following": "next",
    "text": "passage",
    "review": "opinion",
    "ticket": "request",
    "team": "group",
    "date": "day",
}


def noisy(prompt: str, draw: random.Random) -> str:
    """Swaps, drops or doubles a letter in a tenth of the words."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        if draw.random() >= SHARE:
            return word
        i = draw.randrange(len(word) - 1)
        swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        return draw.choice([swapped, word[:i] + word[i + 1 :], word[: i + 1] + word[i:]])

    return re.sub(r"[A-Za-z]{3,}", change, prompt)


def reworded(prompt: str, draw: random.Random) -> str:
    """Replaces words of the instruction by synonyms, keeping their case."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        other = WORDS.get(word.lower())
        if other is None:
            return word
        return other.capitalize() if word[0].isupper() else other

    return re.sub(r"[A-Za-z]+", change, prompt)


SHIFTS: dict[str, Callable[[str, random.Random], str]] = {
    "none": lambda prompt, draw: prompt,
    "noise": noisy,
    "reworded": reworded,
}


def shifted(task: Task, shift: str) -> Task:
    """Returns the task with changed test prompts, the same in every run."""
    draw, change = random.Random(f"{task.name} {shift}"), SHIFTS[shift]

    def turned(turn: dict[str, str]) -> dict[str, str]:
        if turn["role"] != "user":
            return turn
        return {**turn, "content": change(turn["content"], draw)}

    def moved(example: Example) -> Example:
        if not example.messages:
            return replace(example, prompt=change(example.prompt, draw))
        turns = tuple(turned(turn) for turn in example.messages)
        words = (turn["content"] for turn in turns if turn["role"] == "user")
        return replace(example, prompt="\n".join(words), messages=turns)

    return replace(task, test=[moved(example) for example in task.test])


def divided(weights: list[float]) -> list[float]:
    """Divides weights by their sum."""
    return [weight / sum(weights) for weight in weights]


def answered(learner: Learner, task: Task, progress: Progress) -> Evaluation:
    config = learner.experiment.evaluation
    return evaluate(learner.backbone, learner.method, task, config, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | task | shift | score | attention over the blocks | mean move |")
    print("|---|---|---|---|---|---|")
    for folder in parser.parse_args().runs:
        progress = ConsoleProgress(Console(stderr=True, emoji=False), folder.name)
        learner = Learner.load(folder, progress)
        shares = divided if unnormalised(learner.experiment.method) else whole
        for task in learner.tasks:
            usual: list[list[float]] = []
            for shift in SHIFTS:
                cell = answered(learner, shifted(task, shift), progress)
                routing = [row["routing"] for row in cell.rows if "routing" in row]
                weights = [shares(list(map(float, r))) for r in routing]
                usual = usual or weights
                moves = [
                    sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 2
                    for x, y in zip(usual, weights, strict=True)
                ]
                mean = " ".join(f"{w:.2f}" for w in cell.routing or [])
                move = f"{sum(moves) / len(moves):.3f}" if moves else "–"
                cells = (folder.name, task.name, shift, f"{cell.score:.1f}", mean, move)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
