"""Which factor of the cosines would fit: own weight of the closed-form router by router.scale.

    python -m benchmarks.router_scale four_hundred --layers 0 4 --json router-scale.json

The first so many tasks of a stream of benchmarks/routing.py are learned, and their test prompts
routed under each scale. A scale is chosen on the tasks with even numbers, as the one with the least
mean −ln of a prompt's weight on its own block (`nats`; infinite scale would be best if only
the share of right prompts counted), and reported on the others, among all tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.routing import MODEL, STREAMS, Size
from retain.backbone import Backbone, BackboneConfig
from retain.backbone.loading import load_backbone
from retain.methods.base import TaskContext
from retain.methods.sapt.whitened import WhitenedOptions, WhitenedRouter
from retain.system.files import write_json
from retain.tasks import Task

SCALES = (16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
COUNTS = (5, 20, 50, 100, 200, 400)


@dataclass(frozen=True)
class Fit:
    """What prompts of one half of the tasks get: means over tasks."""

    own: float
    top_1: float
    nats: float


@dataclass(frozen=True)
class Row:
    """Both halves under one scale, when so many tasks are learned."""

    tasks: int
    scale: float
    chosen_on: Fit
    others: Fit


def fit(cosines: Sequence[Tensor], numbers: Sequence[int], scale: float) -> Fit:
    """Computes it for the tasks of these numbers from the cosines (N, T) of each task's prompts."""
    logs = {i: F.log_softmax(scale * cosines[i], dim=1)[:, i] for i in numbers}
    return Fit(
        own=round(fmean(float(log.exp().mean()) for log in logs.values()), 4),
        top_1=round(fmean(float((cosines[i].argmax(1) == i).float().mean()) for i in numbers), 4),
        nats=round(fmean(-float(log.mean()) for log in logs.values()), 4),
    )


def rows(backbone: Backbone, layer: int, tasks: Sequence[Task]) -> list[Row]:
    """Learns the tasks, and tries all scales after COUNTS of them."""
    options = WhitenedOptions(layer=layer)
    router = WhitenedRouter(backbone, options, None)
    asked: list[Tensor] = []
    found: list[Row] = []
    for count, task in enumerate(tasks, start=1):
        router.add_task(task, TaskContext(task.name, count - 1, Path(), seed=0))
        asked.append(router.embed([example.prompt for example in task.test]))
        if count not in COUNTS and count != len(tasks):
            continue
        cosines = [router.logits(e) / options.scale for e in asked]
        even, odd = range(0, count, 2), range(1, count, 2)
        for scale in SCALES:
            halves = fit(cosines, even, scale), fit(cosines, odd, scale)
            found.append(Row(count, scale, *halves))
    return found


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("streams", nargs="+", choices=list(STREAMS))
    parser.add_argument("--layers", type=int, nargs="+", default=[0], help="router.layer")
    parser.add_argument("--train", type=int, default=100, help="examples of a task, at most")
    parser.add_argument("--test", type=int, default=20, help="prompts of a task, at most")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="float32", help="of the backbone")
    parser.add_argument("--json", type=Path, help="also write all scales here")
    options = parser.parse_args()
    backbone = load_backbone(BackboneConfig(name=options.model, dtype=options.dtype))
    print("| stream | layer | tasks | scale | own block | top-1 | nats | own block at 64 |")
    print("|---|---|---|---|---|---|---|---|")
    every: dict[str, Any] = {"model": options.model, "dtype": options.dtype}
    for stream in options.streams:
        tasks = STREAMS[stream](Size(options.train, options.test))
        for layer in options.layers:
            found = rows(backbone, layer, tasks)
            every[f"{stream}, layer {layer}"] = [asdict(row) for row in found]
            for count in sorted({row.tasks for row in found}):
                these = [row for row in found if row.tasks == count]
                best = min(these, key=lambda row: row.chosen_on.nats)
                usual = next(row for row in these if row.scale == WhitenedOptions().scale)
                of = best.others
                cells = (f"{of.own:.3f}", f"{of.top_1:.3f}", f"{of.nats:.3f}")
                row = (stream, str(layer), str(count), f"{best.scale:.0f}", *cells)
                print(f"| {' | '.join(row)} | {usual.others.own:.3f} |", flush=True)
            if options.json:  # after each layer, since a long one may be stopped
                write_json(options.json, every)


if __name__ == "__main__":
    main()
