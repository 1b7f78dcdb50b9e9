"""How the tasks of a pool attend to its blocks, right after each was learned and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rich.table import Table
from rich.text import Text

from retain.errors import RetainError
from retain.report.heads import short_names
from retain.report.layout import TASKS_PER_TABLE, cuts, new_table, short
from retain.report.plots import new_panel, panels_png
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import GATES, Gates

Kind = Literal["attention", "gates with a zero block", "sigmoid gates"]
WORDS: dict[Kind, str] = {
    "attention": "Each number is a block's share of the attention, from 0 to 1; a row sums to 1.",
    "gates with a zero block": (
        "Each number is a block's gate, its share of 1; what a row lacks to 1 went to the zero "
        "block, which adds nothing. Effective number: exp of the gates' entropy, the zero block "
        "included."
    ),
    "sigmoid gates": (
        "Each number is a block's gate, from 0 (off) to 1 by itself: a row has no fixed sum. "
        "Effective number: the sum of the gates."
    ),
}
"""What the numbers of a routing are, by its kind."""


@dataclass(frozen=True)
class LayerGates:
    """Gates of one task right after it was learned.

    `layers` are names of modules with adapted layers; `gates` has for each the mean gate of each
    block, and before them of the zero block where there is one; `effective` is the mean effective
    number of blocks.
    """

    task: str
    layers: list[str]
    gates: list[list[float]]
    effective: float


@dataclass(frozen=True)
class Routing:
    """Mean weights over the blocks on each task's test prompts, (tasks × blocks), oldest first.

    `after` is right after the task was learned, over the blocks that there were then; `now` is
    after the newest task. `by_layer` is there for methods that attend in every layer; its task
    number `detailed` is shown. `kind` is a key of `WORDS`.
    """

    label: str
    tasks: list[str]
    after: list[list[float]]
    now: list[list[float]]
    by_layer: list[LayerGates]
    kind: Kind
    detailed: int = -1

    @property
    def zero(self) -> bool:
        """Whether gates by layer begin with that of a zero block."""
        return self.kind == "gates with a zero block"


def routes(run: RunDirectory) -> bool:
    """Whether a run has weights over blocks to show: over all of them, on every task."""
    rows = results.rows(run)
    last = rows[-1].routing if rows else []
    return bool(last) and all(own is not None and len(own) == len(last) for own in last)


def read_routing(run: RunDirectory, task: str | None = None) -> Routing:
    """Reads a pool's routing, without loading its model.

    Args:
        run: an opened run.
        task: the one to show by layer; None for the newest.

    Raises:
        RetainError: when its method does not route, there is no such task, or a file is damaged.
    """
    rows = results.rows(run)
    method = results.experiment_values(run)["method"]
    if not rows:
        raise RetainError(f"{run.path}: nothing to inspect yet; let it finish a task")
    learned = run.learned()[: len(rows)]
    if task is not None and not run.commits(learned[-1] / GATES):
        raise RetainError(f"inspect: method '{method['name']}' has no gates; leave --task out")
    if not routes(run):
        raise RetainError(
            f"{run.path}: nothing to inspect for method '{method['name']}'; give a run of seekr or "
            "of a pool (sapt, sapt-prompt, amlora)"
        )
    zero = method.get("selector", {}).get("gate") != "sigmoid"
    names = [results.task_record(run, folder).name for folder in learned]
    tasks = [" ".join(name.split()) for name in names]
    by_layer = []
    for name, folder in zip(tasks, learned, strict=True):
        gates = results.read(run, folder / GATES, Gates)
        if gates is not None:
            by_layer.append(_layer_gates(name, gates, zero))
    if task is not None and task not in names:
        raise RetainError(f"{run.path}: no task '{task}'; name one of {', '.join(names)}")
    after = [row.routing[i] or [] for i, row in enumerate(rows)]
    label, now = run.path.resolve().name, [weights or [] for weights in rows[-1].routing]
    gated: Kind = "gates with a zero block" if zero else "sigmoid gates"
    detailed = -1 if task is None else names.index(task)
    return Routing(label, tasks, after, now, by_layer, gated if by_layer else "attention", detailed)


def _layer_gates(task: str, stored: Gates, zero: bool) -> LayerGates:
    """Means over the adapted layers of a module, such as the q and v of one attention."""
    groups: dict[str, list[list[float]]] = {}
    for name, gates in zip(stored.layers, stored.gates, strict=True):
        groups.setdefault(name.rpartition(".")[0], []).append(gates if zero else gates[1:])
    means = [[fmean(column) for column in zip(*rows, strict=True)] for rows in groups.values()]
    return LayerGates(task, short_names(list(groups)), means, stored.effective)


def tables(routing: Routing, most: int = TASKS_PER_TABLE) -> list[Table]:
    """Attention right after learning and now, and by layer where there is such.

    At most so many blocks stand side by side in one table. Under the last it says what the numbers
    are.
    """
    parts = cuts(len(routing.tasks), most)
    after = "Attention over the blocks right after learning"
    found = [_weights(after, routing, routing.after, cut) for cut in parts]
    found += [_weights("Attention over the blocks now", routing, routing.now, cut) for cut in parts]
    if routing.by_layer:
        blocks = len(routing.by_layer[routing.detailed].gates[0]) - routing.zero
        found += [_by_layer(routing, cut) for cut in cuts(blocks, most)]
        found.append(_effective(routing))
    found[-1].caption, found[-1].caption_justify = WORDS[routing.kind], "left"
    return found


def routing_png(routing: Routing, path: Path) -> None:
    """Writes the attention right after learning and now, and that of one task by layer."""
    panels = [
        new_panel(routing.after, routing.tasks, routing.tasks, "right after learning", 1.0),
        new_panel(routing.now, routing.tasks, routing.tasks, f"{routing.label}: now", 1.0),
    ]
    if routing.by_layer:
        own = routing.by_layer[routing.detailed]
        columns = ["zero block"] * routing.zero + routing.tasks[: len(own.gates[0]) - routing.zero]
        panels.append(new_panel(own.gates, own.layers, columns, f"{own.task} by layer", 1.0))
    panels_png(panels, path)


def _weights(title: str, routing: Routing, weights: Sequence[Sequence[float]], cut: range) -> Table:
    """The blocks in `cut`, and the tasks that have a weight on them."""
    table = new_table(title, [str(i + 1) for i in cut])
    table.min_width = len(title)
    for number, (task, row) in enumerate(zip(routing.tasks, weights, strict=True), start=1):
        cells = [f"{row[i]:.2f}" for i in cut if i < len(row)]
        if cells:
            table.add_row(Text(f"{number} {short(task)}"), *cells)
    return table


def _by_layer(routing: Routing, cut: range) -> Table:
    """Of one task, right after learning it."""
    own = routing.by_layer[routing.detailed]
    title = f"Gates by layer of {short(own.task)}"
    table = new_table(title, ["zero"] * routing.zero + [str(i + 1) for i in cut])
    table.min_width = len(title)
    for layer, gates in zip(own.layers, own.gates, strict=True):
        shown = gates[:1] * routing.zero + [gates[i + routing.zero] for i in cut]
        table.add_row(Text(layer), *(f"{gate:.2f}" for gate in shown))
    return table


def _effective(routing: Routing) -> Table:
    """Mean over layers and tokens."""
    title = "Effective number of blocks right after learning"
    table = new_table(title, ["with the zero block" if routing.zero else "blocks"])
    for own in routing.by_layer:
        table.add_row(Text(short(own.task)), f"{own.effective:.2f}")
    return table
