"""Does discovery find the tasks of a stream that names none, and where one ends?

    python -m benchmarks.discovery models/SmolLM2-135M-Instruct --json discovery.json

The streams are SuperNI's 15 tasks and Long Sequence's five of data/, with instructions and with
inputs only; with --streams also those of benchmarks/fifty.py and benchmarks/four_hundred.py, and of
benchmarks/languages.py, which have no answers, and whose texts had no part in the thresholds. One
task comes after another, and groups are formed of a shuffled file, as of any other. Purity is the
share of grouped rows whose task is the most frequent one of their group. A boundary is where
a row has another group than the row before and the next LASTS rows keep it, rows of the buffer
skipped; it is right within LASTS rows of a true one.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import fifty, four_hundred, languages
from retain.backbone import BackboneConfig, load_backbone
from retain.discovery.grouping import BUFFER, Space, group_texts, text_of
from retain.system.files import read_json, write_json
from retain.tasks import Example
from retain.tasks.readers import read_long_sequence, read_superni

DATA = Path("data")
LASTS = 5
"""Rows that a group lasts at least, between two boundaries."""


def folders(benchmark: str) -> list[Path]:
    """Returns the folders of a benchmark's tasks."""
    return sorted(path for path in (DATA / benchmark).iterdir() if path.is_dir())


def inputs_only(folder: Path) -> list[Example]:
    """Reads a task's inputs as prompts, with no instruction."""
    rows = []
    for instance in read_json(folder / "train.json")["Instances"]:
        answers = (
            [instance["output"]] if isinstance(instance["output"], str) else instance["output"]
        )
        if answers and answers[0].strip():
            rows.append(Example(instance["input"], tuple(answers)))
    return rows


def spoken(*of: str, asked: bool = True) -> list[list[Example]]:
    """Makes the tasks in some languages, with an instruction or without."""
    return [list(task.train) for task in languages.tasks(of, train=100, test=1, asked=asked)]


STREAMS: dict[str, Callable[[], Sequence[list[Example]]]] = {
    "superni": lambda: [read_superni(path, "train") for path in folders("superni")],
    "superni_inputs": lambda: [inputs_only(path) for path in folders("superni")],
    "long_sequence": lambda: [
        read_long_sequence(path, "train") for path in folders("long_sequence")
    ],
    "long_sequence_inputs": lambda: [inputs_only(path) for path in folders("long_sequence")],
    "fifty": lambda: list(fifty.tasks().values()),
    "four_hundred": lambda: list(four_hundred.tasks().values()),
    "german": partial(spoken, "German"),
    "languages": partial(spoken, *languages.LANGUAGES),
    "languages_inputs": partial(spoken, *languages.LANGUAGES, asked=False),
}
"""The rows of each task by stream."""


def stream(name: str, size: int, seed: int) -> list[list[Example]]:
    """Draws so many training rows of each task; the seed orders rows and tasks."""
    draw = random.Random(seed)
    tasks = [draw.sample(rows, min(size, len(rows))) for rows in STREAMS[name]()]
    draw.shuffle(tasks)
    return tasks


def boundaries(groups: Sequence[int]) -> list[int]:
    """Returns the rows, by number from 1, at which a group that lasts begins."""
    kept = [(row, group) for row, group in enumerate(groups) if group != BUFFER]
    found, now = [], None
    for i, (row, group) in enumerate(kept):
        lasts = all(later == group for _, later in kept[i : i + LASTS])
        if group != now and lasts:
            if now is not None:
                found.append(row)
            now = group
    return found


def matched(found: Sequence[int], true: Sequence[int]) -> int:
    """Counts true boundaries that have one of the found ones near, each used once."""
    left = list(found)
    count = 0
    for row in true:
        near = [place for place in left if abs(place - row) <= LASTS]
        if near:
            left.remove(min(near, key=lambda place: abs(place - row)))
            count += 1
    return count


def measure(space: Space, tasks: Sequence[Sequence[Example]], seed: int) -> dict[str, float]:
    """Groups the rows of a stream, and compares the groups with its tasks."""
    rows = [(number, text_of(example)) for number, task in enumerate(tasks) for example in task]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    begun = time.monotonic()
    grouping = group_texts(space, [rows[i][1] for i in order])
    seconds = time.monotonic() - begun
    by_row = dict(zip(order, grouping.group.tolist(), strict=True))
    groups = [by_row[i] for i in range(len(rows))]
    members: dict[int, Counter[int]] = {}
    for (task, _), group in zip(rows, groups, strict=True):
        if group != BUFFER:
            members.setdefault(group, Counter())[task] += 1
    grouped = sum(sum(counts.values()) for counts in members.values())
    true = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    found = boundaries(groups)
    right = matched(found, true)
    return {
        "tasks": len(tasks),
        "rows": len(rows),
        "blocks": len(members),
        "purity": sum(max(counts.values()) for counts in members.values()) / max(1, grouped),
        "tasks_with_a_block": len({counts.most_common(1)[0][0] for counts in members.values()}),
        "buffer": 1 - grouped / len(rows),
        "boundary_precision": right / max(1, len(found)),
        "boundary_recall": right / max(1, len(true)),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS)[:4])
    parser.add_argument("--rows", type=int, nargs="+", default=[100], help="rows per task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    space = Space(load_backbone(BackboneConfig(name=options.backbone)))
    results: list[dict[str, Any]] = []
    for name in options.streams:
        for size in options.rows:
            runs = [measure(space, stream(name, size, seed), seed) for seed in options.seeds]
            means = {key: fmean(run[key] for run in runs) for key in runs[0]}
            results.append({"stream": name, "rows": size, "mean": means, "runs": runs})
            shown = ", ".join(f"{key} {value:.2f}" for key, value in means.items())
            print(f"{name}, {size} rows a task: {shown}", flush=True)
    if options.json is not None:
        write_json(options.json, {"seeds": options.seeds, "results": results})


if __name__ == "__main__":
    main()
