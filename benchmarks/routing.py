"""Routing alone: which block would a prompt get, with both routers of SAPT, as tasks pile up?

    python -m benchmarks.routing whole fifty --shifts none noise reworded --json routing.json

No block is trained. `attention` is the trained router as it is before a task's first step (keys at
the mean query, projection untrained), which short runs hardly move; `whitened` trains nothing.
`whole` are the tasks of data/superni and data/long_sequence, `inputs` the same without their
instructions, `fifty` the look-alikes of benchmarks/fifty.py. `languages` are those of
benchmarks/languages.py (`_unseen`: tests have another wording than training; `_inputs`: no
instruction; `_and_whole`: with the tasks of `whole`), `long_N` those of benchmarks/long_prompts.py
with N words. `own` is the mean weight of a task's test prompts on its own block, `top_1` the share
of prompts with the most weight there; both are means over tasks, and `groups` over those tasks at
the end whose names begin with the same word. `unknown` is the AUROC of the largest logit (of
`whitened` the largest likeness) between test prompts of the first five tasks and of the others,
when only the first five are learned.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks import fifty, four_hundred, languages, long_prompts
from benchmarks.shift import SHIFTS
from retain.backbone import Backbone, BackboneConfig
from retain.backbone.loading import load_backbone
from retain.methods.base import TaskContext
from retain.methods.sapt.options import RouterConfig
from retain.methods.sapt.whitened import WhitenedOptions, WhitenedRouter
from retain.report import plots
from retain.report.plots import Curve
from retain.system.files import write_json, write_text
from retain.tasks import Example, Task
from retain.tasks.readers import read_long_sequence, read_superni

MODEL = "models/SmolLM2-135M-Instruct"
KNOWN = 5
"""Tasks that are learned where `unknown` is measured."""
CHOSEN_ON = ("task1590", "task748", "task591", "task363", "cb")
"""The first five tasks of `whole`, on which the default of router.threshold was chosen."""
SAME_TEXTS = {"sst2": "task363"}
KINDS = ("attention", "whitened")
Stream = Callable[["Size"], list[Task]]


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
class Rates:
    """What a threshold of the largest likeness does, each a mean over tasks.

    `accepted` is the share of learned tasks' prompts above it, `rejected` that of others below it.
    """

    threshold: float
    accepted: float
    rejected: float

    def __str__(self) -> str:
        return f"{self.threshold:.2f}: {self.accepted:.3f} / {self.rejected:.3f}"


@dataclass(frozen=True)
class Result:
    """A router on a stream: its curve by shift, `unknown`, and what adding a task took.

    `chosen` has the rates of the threshold from the stream's first tasks, `default` those of
    router.threshold, `by_threshold` those of others, all on the same `judges` tasks.
    """

    curves: dict[str, list[Point]]
    unknown: float | None
    seconds_per_task: float
    groups: dict[str, Point]
    judges: int = 0
    chosen: Rates | None = None
    default: Rates | None = None
    by_threshold: Sequence[Rates] = ()


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
        return [Example(four_hundred.text_of(row), row.references) for row in rows]

    return [Task(t.name, bare(t.train), bare(t.dev), bare(t.test)) for t in whole(size)]


def look_alikes(size: Size) -> list[Task]:
    """Returns the tasks of benchmarks/fifty.py."""
    of_fifty = Size(min(size.train, fifty.TRAIN), min(size.test, fifty.TEST))
    return [task_of(name, rows, of_fifty) for name, rows in fifty.tasks().items()]


def questions(size: Size) -> list[Task]:
    """Returns the tasks of benchmarks/four_hundred.py."""
    size = Size(min(size.train, four_hundred.TRAIN), min(size.test, four_hundred.TEST))
    return [task_of(name, rows, size) for name, rows in four_hundred.tasks().items()]


def spoken(*of: str, unseen: bool = False, asked: bool = True) -> Stream:
    """Returns the stream of benchmarks/languages.py in these languages."""
    return lambda size: languages.tasks(of, size.train, size.test, unseen, asked)


def with_whole(size: Size) -> list[Task]:
    """Returns the tasks in other languages and those of `whole`, in a seeded order."""
    tasks = [*spoken(*languages.LANGUAGES)(size), *whole(size)]
    random.Random(0).shuffle(tasks)
    return tasks


def long(words: int) -> Stream:
    """Returns the stream of benchmarks/long_prompts.py with texts of so many words."""
    return lambda size: long_prompts.tasks(words, size.train, size.test)


STREAMS: dict[str, Stream] = {
    "whole": whole,
    "inputs": inputs,
    "fifty": look_alikes,
    "four_hundred": questions,
    **{language.lower(): spoken(language) for language in languages.LANGUAGES},
    "languages": spoken(*languages.LANGUAGES),
    "languages_unseen": spoken(*languages.LANGUAGES, unseen=True),
    "languages_inputs": spoken(*languages.LANGUAGES, asked=False),
    "languages_and_whole": with_whole,
    **{f"long_{words}": long(words) for words in (20, 60, 120, 350)},
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
    config = RouterConfig.model_validate({"kind": kind, **options})
    router = config.make(backbone)
    states: list[dict[str, Tensor]] = []
    asked = {s: [router.embed(changed(task, s)) for task in tasks] for s in shifts}
    curves: dict[str, list[Point]] = {shift: [] for shift in shifts}
    seconds = 0.0
    unknown = None
    for count, task in enumerate(tasks, start=1):
        began = time.monotonic()
        router.add_task(task, TaskContext(task.name, count - 1, Path(), seed=0))
        router(asked[shifts[0]][0])  # derives what is derived once a task
        seconds += time.monotonic() - began
        states.append({name: tensor.detach().clone() for name, tensor in router.state().items()})
        for shift, curve in curves.items() if drawn(count, len(tasks)) else ():
            weights = [router(e).detach() for e in asked[shift][:count]]
            curve.append(point(weights, range(count)))
        if count == KNOWN and len(tasks) > KNOWN:
            near = router.likeness if isinstance(router, WhitenedRouter) else router.logits
            largest = [near(e).detach().amax(1) for e in asked[shifts[0]]]
            unknown = auroc(largest[:KNOWN], largest[KNOWN:])
    weights = [router(e).detach() for e in asked[shifts[0]]]
    names = [task.name.split()[0] for task in tasks]
    groups = {
        name: point(weights, [i for i, other in enumerate(names) if other == name])
        for name in dict.fromkeys(names)
    }
    if kind == "attention" or len(tasks) < KNOWN:
        return Result(curves, unknown, seconds / len(tasks), groups)

    def likeness(learned: Sequence[int], of: Sequence[int]) -> list[Tensor]:
        """Computes the largest likeness of each test prompt of some tasks, (N,) for each task."""
        few = config.make(backbone)
        for i in learned:
            few.load_task(states[i])
        assert isinstance(few, WhitenedRouter)
        return [few.likeness(asked[shifts[0]][i]).amax(1) for i in of]

    left_out = [(i, [j for j in range(KNOWN) if j != i]) for i in range(KNOWN)]
    chosen = best_threshold(
        torch.cat([c for _, learned in left_out for c in likeness(learned, learned)]),
        torch.cat([c for i, learned in left_out for c in likeness(learned, [i])]),
    )
    taken = {*CHOSEN_ON, *(source(task.name) for task in tasks[:KNOWN])}
    judges = [i for i, task in enumerate(tasks) if i >= KNOWN and source(task.name) not in taken]
    halves = judges[::2], judges[1::2]
    if not halves[1]:
        return Result(curves, unknown, seconds / len(tasks), groups)
    known = [c for half in halves for c in likeness(half, half)]
    others = likeness(halves[0], halves[1]) + likeness(halves[1], halves[0])
    values = (chosen, WhitenedOptions().threshold, *(t / 20 for t in range(20)))
    of_chosen, of_default, *of_grid = [rates(value, known, others) for value in values]
    per_task = seconds / len(tasks)
    return Result(curves, unknown, per_task, groups, len(judges), of_chosen, of_default, of_grid)


def point(weights: Sequence[Tensor], numbers: Sequence[int]) -> Point:
    """Averages over the tasks of these numbers, from the weights (N, T) of each task's prompts."""
    own = fmean(float(weights[i][:, i].mean()) for i in numbers)
    top_1 = fmean(float((weights[i].argmax(1) == i).float().mean()) for i in numbers)
    return Point(len(numbers), round(own, 4), round(top_1, 4))


def rates(threshold: float, known: list[Tensor], others: list[Tensor]) -> Rates:
    """Returns what a threshold does, from the largest likeness (N,) of each task's prompts."""
    accepted = fmean(float((c >= threshold).float().mean()) for c in known)
    rejected = fmean(float((c < threshold).float().mean()) for c in others)
    return Rates(round(threshold, 4), round(accepted, 4), round(rejected, 4))


def best_threshold(known: Tensor, others: Tensor) -> float:
    """Returns the threshold that gives known numbers and others the most right answers.

    Both count as much, whatever their numbers. It lies midway between two of them, and of equally
    good ones it is in the middle.
    """
    values = torch.cat([known, others]).sort().values
    between = (values[1:] + values[:-1]) / 2  # (N − 1,)
    accepted = (known >= between[:, None]).float().mean(1)
    rejected = (others < between[:, None]).float().mean(1)
    right = accepted + rejected
    return float(between[right == right.max()].median())


def source(name: str) -> str:
    """Returns the short name of the data set that a task's texts come from."""
    short = name.split()[0].split("_")[0]
    return SAME_TEXTS.get(short, short)


def drawn(count: int, end: int) -> bool:
    """Whether a curve has a point after so many tasks."""
    return count <= 50 or count % 10 == 0 or count == end


def auroc(known: list[Tensor], others: list[Tensor]) -> float:
    """Returns the share of pairs in which the known prompt's number is the larger."""
    pairs = [float((k[:, None] > o).float().mean()) for k in known for o in others]
    return round(fmean(pairs), 4)


def draw(picture: Path, results: Mapping[str, Any]) -> None:
    """Draws the own weight by number of tasks, a curve for each router."""
    lines = [
        Curve(kind, [(point["tasks"], 100 * point["own"]) for point in curves["none"]])
        for kind, curves in ((kind, result["curves"]) for kind, result in results.items())
    ]
    title = "Attention on the own block, percent"
    write_text(picture, plots.curves(lines, title, "tasks learned"))


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("streams", nargs="+", choices=list(STREAMS))
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=["none"])
    parser.add_argument("--layer", type=int, default=0, help="router.layer of whitened")
    parser.add_argument("--train", type=int, default=200, help="examples of a task, at most")
    parser.add_argument("--test", type=int, default=40, help="prompts of a task, at most")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="float32", help="of the backbone")
    parser.add_argument("--groups", action="store_true", help="also print each group of tasks")
    parser.add_argument("--json", type=Path, help="also write all curves here")
    parser.add_argument("--picture", type=Path, help="also draw the last stream's curves")
    options = parser.parse_args()
    backbone = load_backbone(BackboneConfig(name=options.model, dtype=options.dtype))
    print(
        "| stream | router | shift | tasks | own block | top-1 | unknown, AUROC "
        "| threshold: accepts / rejects | default: accepts / rejects | ms a task |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
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
                unknown = f"{result.unknown} | {result.chosen or '–'} | {result.default or '–'}"
                cells = (f"{end.own:.3f}", f"{end.top_1:.3f}", unknown)
                row = (stream, kind, shift, str(len(tasks)), *cells)
                print(f"| {' | '.join(row)} | {1000 * result.seconds_per_task:.0f} |", flush=True)
            for group, end in result.groups.items() if options.groups else ():
                of_group = f"{stream}: {group} | {kind} | {options.shifts[0]} | {end.tasks}"
                print(f"| {of_group} | {end.own:.3f} | {end.top_1:.3f} | | | | |", flush=True)
        if options.json:  # after each stream, since a long one may be stopped
            write_json(options.json, {"model": options.model, "layer": options.layer, **every})
    if options.picture:
        draw(options.picture, every[options.streams[-1]])


if __name__ == "__main__":
    main()
