"""Fills the tables of docs/results.md: runs what is missing, in any number of sittings.

    python -m benchmarks.results configs/superni-short.yaml --variants seqlora "sapt rank=4"

A variant is a method with the options that differ from the experiment's; a sweep is a list of them,
such as "sapt reflection.weight="{0,0.5,2}. Each run lies in OUT/<experiment>/<variant>-<seed>; an
interrupted one continues where it stopped. With --dev part of train stands in for the test split:
for choosing settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from retain import Task, load_stream, results
from retain.config import ExperimentConfig, check_method, read_experiment, set_field
from retain.errors import RetainError
from retain.files import read_jsonl
from retain.methods import METHODS
from retain.methods.sequential import LORA
from retain.metrics import continual
from retain.metrics.text import score
from retain.progress import ConsoleProgress
from retain.store import RunDirectory
from retain.stream import learn_stream

SHARED = (*LORA, "tune", "replay", "teacher", "generator")
"""Options of an experiment's method that mean the same in another."""


def run(experiment: ExperimentConfig, variant: str, seed: int, folder: Path, dev: bool) -> None:
    """Learns one stream, or what is left of it."""
    update = {"method": method_of(variant, experiment), "seed": seed, "output": str(folder)}
    progress = ConsoleProgress(Console(stderr=True), folder.name)
    began = time.monotonic()
    tasks = [_on_dev(task) if dev else task for task in load_stream(experiment.tasks)]
    learn_stream(experiment.model_copy(update=update), tasks, resume=True, progress=progress)
    progress.message(f"done in {time.monotonic() - began:.0f} s")


def method_of(variant: str, experiment: ExperimentConfig) -> dict[str, Any]:
    """The variant's method, with those of the experiment's options that methods share."""
    name, *options = variant.split()
    known = METHODS[name].Config.model_fields if name in METHODS else {}
    shared = {k: v for k, v in experiment.method.items() if k in known and k in SHARED}
    if "tune" in known and shared.get("tune") != "lora" and "tune=lora" not in options:
        shared = {k: v for k, v in shared.items() if k not in LORA}
    values: dict[str, Any] = {"method": {**deepcopy(shared), "name": name}}
    for option in options:
        set_field(values, f"method.{option}")
    check_method(values["method"], f"variant '{variant}'")
    return dict(values["method"])


def place(out: Path, variant: str, seed: int) -> Path:
    """The run's folder, such as `seekr,score=random-0`."""
    return out / f"{','.join(variant.split())}-{seed}"


def _on_dev(task: Task) -> Task:
    """Sixty training examples are tested on instead, and no longer trained on."""
    return replace(task, test=task.train[:60], train=task.train[60:])


def row(folder: Path, pertask: Path) -> dict[str, float | None]:
    """One run's line of the table."""
    opened = results.open_run(folder)
    try:
        single = results.single_scores(opened, pertask)
    except RetainError:  # not run yet, or not to its end
        single = None
    scores = results.scores(opened, single)
    line: dict[str, float | None] = dict(scores["metrics"])
    routing = results.rows(opened)[-1]["routing"]
    if routing[0] is not None and len(routing) == len(routing[0]):
        line["own_block"] = statistics.mean(weights[i] for i, weights in enumerate(routing))
    costs = results.costs(opened)
    line["parameters"] = max((cost.get("parameters", 0) for cost in costs), default=0) or None
    line["minutes"] = sum(cost.get("seconds", 0) for cost in costs) / 60 or None
    line["megabytes"] = sum(cost["bytes"] for cost in costs) / 1e6
    line["rouge_l"] = continual.average_performance([_rouge(opened)])
    return line


def _rouge(run: RunDirectory) -> list[float | None]:
    """ROUGE-L of the newest predictions on each task."""
    found: list[float | None] = []
    for path in results.newest_predictions(run).values():
        rows = read_jsonl(path)
        predictions = [row["prediction"] for row in rows]
        references, prompts = [r["references"] for r in rows], [r["prompt"] for r in rows]
        found.append(score("rouge_l", predictions, references, prompts))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--reversed", action="store_true", help="the tasks in reversed order")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    given = options.out / (options.config.stem + ("-dev" if options.dev else ""))
    out = given.with_name(f"{given.name}-reversed") if options.reversed else given
    order = ["order=reversed"] if options.reversed else []
    experiment = read_experiment(options.config, [*options.changes, *order])
    for variant in options.variants:  # all are checked before the first is run
        method_of(variant, experiment)
    for seed in options.seeds:
        for variant in options.variants:
            run(experiment, variant, seed, place(out, variant, seed), options.dev)
    names = ("average_performance", "forgetting", "forward_transfer", "backward_transfer")
    columns = (*names, "rouge_l", "own_block", "parameters", "megabytes", "minutes")
    titles = "AP, ROUGE-L | own block | trained | MB kept | minutes"
    print(f"| variant | seed | AP | F.Ra | FWT | BWT | {titles} |")
    print("|---" * (len(columns) + 2) + "|")
    matrices = []
    for variant in options.variants:
        for seed in options.seeds:
            line = row(place(out, variant, seed), place(given, "pertask", seed))
            values = (line.get(column) for column in columns)
            cells = ["–" if v is None else f"{v:,.0f}" if v > 1e4 else f"{v:.2f}" for v in values]
            print(f"| {variant} | {seed} | {' | '.join(cells)} |")
            matrix = results.scores(results.open_run(place(out, variant, seed)))["matrix"]
            matrices.append(f"{variant} | {seed} | {json.dumps(matrix)}")
    print("\nScore matrices:", *matrices, sep="\n")


if __name__ == "__main__":
    main()
