"""Kills a small run at random moments, resumes it, and compares its files bit for bit.

    python -m benchmarks.chaos --runs 100 --seed 0 --methods sapt seekr amlora replay

Every attempt is `retain run --resume` in a process of its own, forked from one that has imported
everything, which is what makes a hundred runs affordable; SIGKILL ends it at a moment drawn from
the time that the uninterrupted run took. A run is killed one to three times before it may end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from retain.testing.tiny import OPTIONS, TRAINING, read_files, save_backbone
from tests.command import call, settings, write_settings, write_tasks

METHODS = ("sapt", "seekr", "amlora", "replay")
TASKS = ("copy", "constant", "letter")
STEPS = 8
MOST_KILLS = 3
LIMIT = 600
"""Seconds after which an attempt counts as hung."""
UNEQUAL = {"manifest.json", "cost.json"}
"""Files that hold the seconds of training, and the checksums of those that do."""


@dataclass(frozen=True)
class Whole:
    """Result of an uninterrupted run: its files and its duration in seconds."""

    files: Mapping[str, bytes]
    seconds: float


def write_stream(place: Path) -> None:
    """Writes a tiny backbone, three tasks, and per method an experiment that saves every step."""
    save_backbone("llama", place / "backbone")
    write_tasks(place)
    values = settings(place / "backbone", *TASKS)
    values["tasks"] = [
        {key: str(place / at) for key, at in task.items()} for task in values["tasks"]
    ]
    values["training"] = {**TRAINING, "max_steps": STEPS}
    for method in METHODS:
        values["method"] = {"name": method, **OPTIONS.get(method, {})}
        write_settings(place / f"{method}.yaml", values)


def attempt(config: Path, folder: Path, seconds: float | None = None) -> bool:
    """Runs `retain run --resume` in `folder`, killed after a time; returns whether it finished.

    Raises:
        RuntimeError: if it fails, or does not end.
    """
    process = multiprocessing.get_context("fork").Process(target=_command, args=(config, folder))
    process.start()
    process.join(LIMIT if seconds is None else seconds)
    ended = not process.is_alive()
    process.kill()
    process.join()
    if ended and process.exitcode == 0:
        return True
    if ended or seconds is None:
        raise RuntimeError(f"{folder}: ended with {process.exitcode}; see its log")
    return False


def _command(config: Path, folder: Path) -> None:
    """Runs the command in the child process, in its own folder."""
    os.chdir(folder)
    done = call("run", config, "--output", "run", "--resume")
    (folder / "log").write_text(done.err, encoding="utf-8")
    sys.exit(done.status)


def content(folder: Path) -> dict[str, bytes]:
    """Reads the files that must be equal: all except those that contain times."""
    return {
        name: data
        for name, data in read_files(folder / "run").items()
        if Path(name).name not in UNEQUAL
    }


def whole(config: Path, folder: Path) -> Whole:
    """Runs an experiment once without a kill."""
    folder.mkdir()
    began = time.monotonic()
    attempt(config, folder)
    return Whole(content(folder), time.monotonic() - began)


def kill_and_resume(config: Path, folder: Path, seconds: float, draw: random.Random) -> int:
    """Kills a run one to three times, then lets it finish; returns the number of kills."""
    while True:
        folder.mkdir()
        kills = 0
        wanted = draw.randint(1, MOST_KILLS)
        for _ in range(wanted):  # each within its share, or most would come after the end
            if attempt(config, folder, draw.uniform(0, seconds / wanted)):
                break
            kills += 1
        else:
            attempt(config, folder)
        if kills:
            return kills
        shutil.rmtree(folder)  # it came to its end before the first kill, and shows nothing


def chaos(place: Path, methods: Sequence[str], runs: int, seed: int) -> bool:
    """Makes `runs` runs, the methods in turn; prints differences; returns whether all are equal."""
    write_stream(place)
    wholes = {m: whole(place / f"{m}.yaml", place / f"whole-{m}") for m in methods}
    draw = random.Random(seed)
    identical = kills = 0
    for number in range(runs):
        method = methods[number % len(methods)]
        folder = place / f"{number}-{method}"
        kills += kill_and_resume(place / f"{method}.yaml", folder, wholes[method].seconds, draw)
        found, wanted = content(folder), wholes[method].files
        differ = sorted(n for n in found.keys() | wanted if found.get(n) != wanted.get(n))
        identical += not differ
        if differ:
            print(f"{folder.name}: {', '.join(differ)}")
    print(f"{identical} of {runs} identical, after {kills} kills")
    return identical == runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a fork does not take threads along
    with TemporaryDirectory() as place:
        same = chaos(Path(place), options.methods, options.runs, options.seed)
    sys.exit(not same)


if __name__ == "__main__":
    main()
