"""Fills the tables of docs/results.md: runs what is missing, in any number of sittings.

    python benchmarks/results.py configs/superni-short.yaml --variants seqlora sapt --seeds 0 1

Each run lies in OUT/<experiment>/<variant>-<seed>; an interrupted one continues where it stopped.
With --dev part of train stands in for the test split: for choosing settings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from retain import Task, load_stream, results
from retain.config import read_experiment
from retain.errors import RetainError
from retain.methods import METHODS
from retain.methods.base import filled_in
from retain.metrics import continual
from retain.metrics.text import score
from retain.progress import ConsoleProgress
from retain.store import read_jsonl
from retain.stream import learn_stream

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in METHODS},
    "sapt-paper": {"name": "sapt", "preset": "paper"},
    "sapt-paper-10x": {"name": "sapt", "preset": "paper", "router": {"rate": 10.0}},
    "sapt-no-reflection": {"name": "sapt", "reflection": {"weight": 0.0}},
    "sapt-real": {"name": "sapt", "reflection": {"samples": "real"}},
    "seekr-reference": {"name": "seekr", "profile": "reference"},
    "seekr-random": {"name": "seekr", "score": "random"},
    "seekr-sensitivity": {"name": "seekr", "score": "sensitivity"},
    "seekr-forgettability": {"name": "seekr", "score": "forgettability"},
    "seekr-5": {"name": "seekr", "replay": {"share": 0.05}},
    "seekr-10": {"name": "seekr", "replay": {"share": 0.1}},
    "seekr-half": {"name": "seekr", "budget": {"heads": 0.0625}},
    "seekr-double": {"name": "seekr", "budget": {"heads": 0.25}},
}
"""Each takes the experiment's method options beside its own, as far as its method knows them."""


def run(config: Path, changes: list[str], variant: str, seed: int, folder: Path, dev: bool) -> None:
    """Learns one stream, or what is left of it."""
    experiment = read_experiment(config, changes)
    chosen = VARIANTS[variant]
    known = METHODS[chosen["name"]].Config.model_fields
    shared = {key: value for key, value in experiment.method.items() if key in known}
    method = filled_in(chosen, shared)
    update = {"method": method, "seed": seed, "output": str(folder)}
    progress = ConsoleProgress(Console(stderr=True), folder.name)
    began = time.monotonic()
    tasks = [_on_dev(task) if dev else task for task in load_stream(experiment.tasks)]
    learn_stream(experiment.model_copy(update=update), tasks, resume=True, progress=progress)
    progress.message(f"done in {time.monotonic() - began:.0f} s")


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
    line["rouge_l"] = continual.average_performance([_rouge(opened.learned())])
    return line


def _rouge(folders: list[Path]) -> list[float | None]:
    """ROUGE-L of the last row, from the newest predictions on each task."""
    newest = {p.name: p for folder in folders for p in (folder / "predictions").glob("*.jsonl")}
    found: list[float | None] = []
    for _, path in sorted(newest.items()):
        rows = read_jsonl(path)
        found.append(
            score(
                "rouge_l",
                [r["prediction"] for r in rows],
                [r["references"] for r in rows],
                [r["prompt"] for r in rows],
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    place = options.out / (options.config.stem + ("-dev" if options.dev else ""))
    for seed in options.seeds:
        for variant in options.variants:
            folder = place / f"{variant}-{seed}"
            run(options.config, options.changes, variant, seed, folder, options.dev)
    names = ("average_performance", "forgetting", "forward_transfer", "backward_transfer")
    columns = (*names, "rouge_l", "own_block")
    print("| variant | seed | AP | F.Ra | FWT | BWT | AP, ROUGE-L | own block |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in options.variants:
        for seed in options.seeds:
            line = row(place / f"{variant}-{seed}", place / f"pertask-{seed}")
            values = (line.get(column) for column in columns)
            cells = ["–" if v is None else f"{v:.2f}" for v in values]
            print(f"| {variant} | {seed} | {' | '.join(cells)} |")
            matrix = results.scores(results.open_run(place / f"{variant}-{seed}"))["matrix"]
            print(f"<!-- {yaml.safe_dump(matrix, default_flow_style=True, width=999).strip()} -->")


if __name__ == "__main__":
    main()
