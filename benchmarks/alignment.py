"""Drift of each task's attention over the blocks since the task was learned.

    python -m benchmarks.alignment runs/sweep/superni-short/sapt-0 …

Per run and task it prints KL(right after learning ‖ at the end) in nats, as a mean over the test
prompts, from the routing that evaluation stored. Later blocks had weight 0 right after learning.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import Prediction, predictions_file, read_records


def divergence(before: list[float], after: list[float]) -> float:
    """Computes KL(before ‖ after); `after` has at least as many blocks."""
    pairs = zip(before, after, strict=False)
    return sum(p * math.log(p / max(q, 1e-6)) for p, q in pairs if p > 0)


def alignment(run: RunDirectory) -> dict[str, float]:
    """Returns the divergence of each task except the last, by name."""
    folders = run.learned()
    names = results.scores(run).tasks
    found = {}
    for j, name in enumerate(names[:-1]):
        first, last = (
            read_records(Prediction, predictions_file(place, j))
            for place in (folders[j], folders[len(names) - 1])
        )
        found[name] = fmean(
            divergence(whole(a.routing or []), whole(b.routing or []))
            for a, b in zip(first, last, strict=True)
        )
    return found


def unnormalised(method: dict[str, Any]) -> bool:
    """Whether a method's weights over blocks do not sum to a constant."""
    return bool(method.get("selector", {}).get("gate") == "sigmoid")


def whole(weights: list[float]) -> list[float]:
    """Prepends the weight of AM-LoRA's zero block, so that weights sum to 1."""
    return [max(0.0, 1 - sum(weights)), *weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | AP | mean KL | by task |")
    print("|---|---|---|---|")
    for folder in parser.parse_args().runs:
        run = results.open_run(folder)
        routed = run.learned() and predictions_file(run.learned()[-1], 0).exists()
        if len(run.learned()) < 2 or not routed or results.rows(run)[-1].routing[0] is None:
            parser.error(f"{folder}: needs a run of a router with two tasks or more")
        if unnormalised(results.experiment_values(run)["method"]):
            parser.error(f"{folder}: its gates (sigmoid) are no shares of 1; compare other runs")
        by_task = alignment(run)
        score = results.scores(run).metrics["average_performance"]
        each = " ".join(f"{value:.4f}" for value in by_task.values())
        shown = "–" if score is None else f"{score:.2f}"
        print(f"| {folder.name} | {shown} | {fmean(by_task.values()):.4f} | {each} |")


if __name__ == "__main__":
    main()
