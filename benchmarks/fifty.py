"""A stream of fifty tasks of varied similarity: does attention dilute as blocks pile up?

    python -m benchmarks.fifty write runs/fifty
    retain run runs/fifty/stream.yaml --resume
    python -m benchmarks.fifty read runs/fifty/run --picture docs/fifty.svg

The tasks come from data/superni and data/long_sequence. Classification tasks are cut by label, so
that their parts share instruction and kind of text and differ by what the texts say; the others
stay whole; the rest asks five things (such as the first word) about the inputs of three of them.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path
from statistics import fmean

import yaml

from retain.report.plots import Curve, curves
from retain.runs import results
from retain.runs.records import Prediction, predictions_file, read_records
from retain.system.files import write_jsonl, write_text
from retain.tasks import Example
from retain.tasks.readers import read_long_sequence, read_superni

DATA = Path("data")
TASKS, TRAIN, TEST, LABELS = 50, 80, 4, 6
TOKEN = "yes"
ASKED = {
    "capitals": ("Write the text in capital letters.", str.upper),
    "count": ("Count the words of the text.", lambda text: str(len(text.split()))),
    "first": ("Give the first word of the text.", lambda text: text.split()[0]),
    "last": ("Give the last word of the text.", lambda text: text.split()[-1]),
    "backwards": (
        "Give the words of the text in reversed order.",
        lambda text: " ".join(reversed(text.split())),
    ),
}
SOURCES = ("sst2", "task591_sciq_answer_generation", "task1687_sentiment140_classification")
STREAM = {
    "backbone": {
        "name": "models/SmolLM2-135M-Instruct",
        "dtype": "bfloat16",
        "attention": "eager",
    },
    "method": {
        "name": "sapt",
        "rank": 8,
        "alpha": 16,
        "router": {"kind": "attention"},
        "generator": {"max_steps": 10},
    },
    "training": {"max_steps": 10, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
    "evaluation": {"max_new_tokens": 1, "limit": TEST, "batch_size": TEST},
    "prompt": {"max_prompt_tokens": 96},
}


def tasks() -> dict[str, list[Example]]:
    """Returns the tasks by name, in a seeded order, with equally many examples each."""
    draw = random.Random(0)
    found: dict[str, list[Example]] = {}
    texts: dict[str, list[str]] = {}
    for folder in sorted([*DATA.glob("superni/*"), *DATA.glob("long_sequence/*")]):
        read = read_superni if folder.parent.name == "superni" else read_long_sequence
        rows = read(folder, "train")
        draw.shuffle(rows)
        name = folder.name.split("_")[0]
        labels = Counter(row.references[0] for row in rows)
        if len(labels) > LABELS:
            found[name] = rows
        for label in sorted(labels) if len(labels) <= LABELS else ():
            found[f"{name} {label}"] = [row for row in rows if row.references[0] == label]
        if folder.name in SOURCES:
            texts[name] = [input_of(row) for row in rows]
    for name, inputs in texts.items():
        for kind, (question, answer) in ASKED.items():
            found[f"{name} {kind}"] = [
                Example(f"{question}\nText: {text}\nAnswer:", (answer(text),)) for text in inputs
            ]
    whole = [(name, rows) for name, rows in found.items() if len(rows) >= TRAIN + TEST]
    draw.shuffle(whole)
    return {name: rows[: TRAIN + TEST] for name, rows in whole[:TASKS]}


def input_of(row: Example) -> str:
    """Returns a prompt's input text, without the words that the reader adds around it."""
    for before, after in (("\nInput:", "\nOutput:"), ("\nText:", "\nAnswer:")):
        if before in row.prompt:
            return row.prompt.partition(before)[2].rpartition(after)[0].strip()
    raise ValueError(f"no input in {row.prompt!r}")


def write(folder: Path) -> None:
    """Writes the tasks' files and the experiment file."""
    listed = []
    for number, (name, rows) in enumerate(tasks().items(), start=1):
        paths = [folder / f"{number:02d}.{split}.jsonl" for split in ("train", "test")]
        # Of a test example the routing is read and no answer: one token stands in for it.
        asked = [Example(row.prompt, (TOKEN,)) for row in rows[:TEST]]
        for path, part in zip(paths, (rows[TEST:], asked), strict=True):
            write_jsonl(path, [row.as_row() for row in part])
        train, test = map(str, paths)
        listed.append({"name": name, "path": train, "test": test})
    experiment = {**STREAM, "tasks": listed, "seed": 0, "output": str(folder / "run")}
    write_text(folder / "stream.yaml", yaml.safe_dump(experiment, sort_keys=False))


def read(folder: Path, picture: Path | None) -> None:
    """Prints the mean weight of the learned tasks' prompts on their own blocks, after each task."""
    run = results.open_run(folder)
    folders = run.learned()
    names = [results.task_record(run, folder).name for folder in folders]
    own: list[tuple[float, float]] = []
    right: list[tuple[float, float]] = []
    print("| tasks | own block | prompts with most on their own block | lowest task |")
    print("|---|---|---|---|")
    for row in results.rows(run):
        routing = [weights for weights in row.routing if weights is not None]
        count = len(routing)
        shares = [weights[i] for i, weights in enumerate(routing)]
        largest = [
            asked.routing is not None and asked.routing[i] == max(asked.routing)
            for i in range(count)
            for asked in read_records(Prediction, predictions_file(folders[count - 1], i))
        ]
        own.append((count, 100 * fmean(shares)))
        right.append((count, 100 * fmean(largest)))
        if count in (1, 2, 5) or count % 10 == 0:
            lowest = min(range(count), key=shares.__getitem__)
            cells = f"{own[-1][1]:.1f} % | {right[-1][1]:.1f} %"
            print(f"| {count} | {cells} | {names[lowest]}: {100 * shares[lowest]:.0f} % |")
    if picture is not None:
        lines = [Curve("on the own block", own), Curve("prompts with most there", right)]
        write_text(picture, curves(lines, "Attention as tasks pile up, percent", "tasks learned"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "read"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, help="also write the curves here, as SVG")
    options = parser.parse_args()
    if options.what == "write":
        write(options.folder)
    else:
        read(options.folder, options.picture)


if __name__ == "__main__":
    main()
