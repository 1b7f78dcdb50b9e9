"""Routing alone: which block would a prompt get, with both routers of SAPT, as tasks pile up?

    python -m benchmarks.routing whole fifty --shifts none noise reworded --json routing.json

No block is trained. `attention` is the default router as it is before a task's first step (keys at
the mean query, projection untrained), which short runs hardly move; `whitened` trains nothing.
`whole` are the tasks of data/superni and data/long_sequence, `inputs` the same without their
instructions, `fifty` the look-alikes of benchmarks/fifty.py. `own` is the mean weight of a task's
test prompts on its own block, `top_1` the share of prompts with the most weight there; both are
means over tasks. `unknown` is the AUROC of the largest logit (of `whitened` a cosine) between test
prompts of the first five tasks and of the others, when only the first five are learned.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from benchmarks import fifty
from benchmarks.shift import SHIFTS
from retain.backbone import Backbone, BackboneConfig
from retain.backbone.loading import load_backbone
from retain.methods.base import TaskContext
from retain.methods.sapt.method import RouterConfig
from retain.system.files import write_json
from retain.tasks import Example, Task
from retain.tasks.readers import read_long_sequence, read_superni

MODEL = "models/SmolLM2-135M-Instruct"
KNOWN = 5
"""Tasks that are learned where `unknown` is measured."""
KINDS = ("attention", "whitened")


@dataclass(frozen=True)
class Size:
    """How many examples of a task are learned and asked, at most."""

    train: int
    test: int


@dataclass(frozen=True)
class Point:
    """Own weight and top-1 when so many tasks are learned."""

    tasks: int
    own: float
    top_1: float


@dataclass(frozen=True)
class Result:
    """A router on a stream: its curve by shift, `unknown`, and what adding a task took."""

    curves: dict[str, list[Point]]
    unknown: float | None
    seconds_per_task: float


def whole(size: Size) -> list[Task]:
    """Returns the tasks of both benchmarks, in a seeded order."""
    tasks = []
    for folder in sorted([*fifty.DATA.glob("superni/*"), *fifty.DATA.glob("long_sequence/*")]):
        read = read_superni if folder.parent.name == "superni" else read_long_sequence
        rows = read(folder, "train")
        random.Random(folder.name).shuffle(rows)
        tasks.append(task_of(folder.name, rows, size))
    random.Random(0).shuffle(tasks)
    return tasks


def inputs(size: Size) -> list[Task]:
    """Returns the tasks of `whole` with the prompts' input texts only."""

    def bare(rows: Sequence[Example]) -> list[Example]:
        return [Example(input_text(row), row.references) for row in rows]

    return [Task(t.name, bare(t.train), bare(t.dev), bare(t.test)) for t in whole(size)]


def input_text(row: Example) -> str:
    """Returns a prompt without instruction, options and cue; these tasks' options are one line."""
    if "\nOption: " in f"\n{row.prompt}" and "\nText:" not in row.prompt:
        after_options = f"\n{row.prompt}".partition("\nOption: ")[2].partition("\n")[2]
        return after_options.rpartition("\nAnswer:")[0]
    return fifty.input_of(row)


def look_alikes(size: Size) -> list[Task]:
    """Returns the tasks of benchmarks/fifty.py."""
    of_fifty = Size(min(size.train, fifty.TRAIN), min(size.test, fifty.TEST))
    return [task_of(name, rows, of_fifty) for name, rows in fifty.tasks().items()]


STREAMS: dict[str, Callable[[Size], list[Task]]] = {
    "whole": whole,
    "inputs": inputs,
    "fifty": look_alikes,
}


def task_of(name: str, rows: Sequence[Example], size: Size) -> Task:
    """Splits rows: tests come first, as in benchmarks/fifty.py."""
    test, train = rows[: size.test], rows[size.test : size.test + size.train]
    return Task(name, train, test, test)


def changed(task: Task, shift: str) -> list[str]:
    """Returns the task's test prompts under a shift of benchmarks/shift.py."""
    draw = random.Random(f"{task.name} {shift}")
    return [SHIFTS[shift](example.prompt, draw) for example in task.test]


def measured(
    backbone: Backbone, kind: str, options: dict[str, object], tasks: list[Task], shifts: list[str]
) -> Result:
    """Adds the tasks one by one, and routes all their prompts after each."""
    router = RouterConfig.model_validate({"kind": kind, **options}).make(backbone)
    asked = {s: [router.embed(changed(task, s)) for task in tasks] for s in shifts}
    curves: dict[str, list[Point]] = {shift: [] for shift in shifts}
    seconds = 0.0
    unknown = None
    for count, task in enumerate(tasks, start=1):
        began = time.monotonic()
        router.add_task(task, TaskContext(task.name, count - 1, Path(), seed=0))
        router(asked[shifts[0]][0])  # derives what is derived once a task
        seconds += time.monotonic() - began
        for shift, curve in curves.items():
            weights = [router(e).detach() for e in asked[shift][:count]]
            own = fmean(float(w[:, i].mean()) for i, w in enumerate(weights))
            top_1 = fmean(float((w.argmax(1) == i).float().mean()) for i, w in enumerate(weights))
            curve.append(Point(count, round(own, 4), round(top_1, 4)))
        if count == KNOWN and len(tasks) > KNOWN:
            largest = [router.logits(e).detach().amax(1) for e in asked[shifts[0]]]
            unknown = auroc(largest[:KNOWN], largest[KNOWN:])
    return Result(curves, unknown, seconds / len(tasks))


def auroc(known: list[Tensor], others: list[Tensor]) -> float:
    """Returns the share of pairs in which the known prompt's number is the larger."""
    pairs = [float((k[:, None] > o).float().mean()) for k in known for o in others]
    return round(fmean(pairs), 4)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("streams", nargs="+", choices=list(STREAMS))
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=["none"])
    parser.add_argument("--layer", type=int, default=0, help="router.layer of whitened")
    parser.add_argument("--train", type=int, default=200, help="examples of a task, at most")
    parser.add_argument("--test", type=int, default=40, help="prompts of a task, at most")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--json", type=Path, help="also write all curves here")
    options = parser.parse_args()
    backbone = load_backbone(BackboneConfig(name=options.model))
    print("| stream | router | shift | tasks | own block | top-1 | unknown, AUROC | ms a task |")
    print("|---|---|---|---|---|---|---|---|")
    every: dict[str, dict[str, object]] = {}
    for stream in options.streams:
        tasks = STREAMS[stream](Size(options.train, options.test))
        every[stream] = {}
        for kind in KINDS:
            extra: dict[str, object] = {"layer": options.layer} if kind == "whitened" else {}
            result = measured(backbone, kind, extra, tasks, options.shifts)
            every[stream][kind] = asdict(result)
            for shift, curve in result.curves.items():
                end = curve[-1]
                cells = (f"{end.own:.3f}", f"{end.top_1:.3f}", f"{result.unknown}")
                row = (stream, kind, shift, str(len(tasks)), *cells)
                print(f"| {' | '.join(row)} | {1000 * result.seconds_per_task:.0f} |", flush=True)
    if options.json:
        write_json(options.json, {"model": options.model, "layer": options.layer, **every})


if __name__ == "__main__":
    main()
