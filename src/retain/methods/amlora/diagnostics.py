"""Diagnostics of an AM-LoRA run: gates over all layers, and by layer right after each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from retain.errors import RetainError
from retain.methods.shared.module_names import short_names
from retain.methods.shared.routing_diagnostics import read_routing, routing_section
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Record
from retain.runs.sections import Grid, HeatMap, Section

GATES = "gates.json"
"""File of the gates in a task's folder."""
SOFTMAX = (
    "Each number is a block's gate, its share of 1; what a row lacks to 1 went to the zero block, "
    "which adds nothing. Effective number: exp of the gates' entropy, the zero block included."
)
SIGMOID = (
    "Each number is a block's gate, from 0 (off) to 1 by itself: a row has no fixed sum. "
    "Effective number: the sum of the gates."
)


class Gates(Record):
    """`gates.json`: mean gates of each adapted layer on held-out prompts.

    `gates` has T + 1 numbers per layer, first that of the zero block. `effective` is the mean
    effective number of blocks.
    """

    layers: list[str]
    gates: list[list[float]]
    effective: float


class _Selector(Record):
    gate: str


class _Options(Record):
    selector: _Selector


@dataclass(frozen=True)
class LayerGates:
    """The gates of one task right after it was learned.

    Attributes:
        task: the task's name.
        layers: names of the modules with adapted layers.
        gates: the mean gate of each block (layers × blocks), first that of the zero block if any.
        effective: the mean effective number of blocks.
    """

    task: str
    layers: list[str]
    gates: list[list[float]]
    effective: float


def amlora_diagnostics(run: RunDirectory, task: str | None) -> list[Section]:
    """Returns the section on a run's gates, by layer for one task (by default the newest).

    Raises:
        RetainError: when there is no such task, or a file is damaged.
    """
    routing = read_routing(run)
    if routing is None:
        return []
    names = [results.task_record(run, folder).name for folder in run.learned()]
    names = names[: len(routing.tasks)]
    if task is not None and task not in names:
        raise RetainError(f"{run.path}: no task '{task}'; name one of {', '.join(names)}")
    has_zero = results.method_options(run, _Options).selector.gate != "sigmoid"
    by_layer = [
        _layer_gates(name, results.read_required(run, folder / GATES, Gates), has_zero)
        for name, folder in zip(routing.tasks, run.learned(), strict=False)
    ]
    index = -1 if task is None else names.index(task)
    chosen = by_layer[index]
    blocks = routing.tasks[: len(chosen.gates[0]) - has_zero]
    columns = ["zero block"] * has_zero + blocks
    return [
        routing_section(
            routing,
            SOFTMAX if has_zero else SIGMOID,
            [layer_grid(chosen, has_zero), effective_grid(by_layer, has_zero)],
            [HeatMap(f"{chosen.task} by layer", chosen.layers, columns, chosen.gates)],
            names[index],
        )
    ]


def layer_grid(gates: LayerGates, has_zero: bool) -> Grid:
    """Returns the table of one task's gates: a row per layer, a column per block."""
    count = len(gates.gates[0])
    columns = ["zero"] * has_zero + [str(i + 1) for i in range(count - has_zero)]
    layers = zip(gates.layers, gates.gates, strict=True)
    rows = [(layer, [f"{gate:.2f}" for gate in row]) for layer, row in layers]
    title = f"Gates by layer of {short(gates.task)}"
    return Grid(title, columns, rows, per_task=range(int(has_zero), count))


def effective_grid(by_task: Sequence[LayerGates], has_zero: bool) -> Grid:
    """Returns the table of the effective number of blocks by task, mean over layers and tokens."""
    return Grid(
        "Effective number of blocks right after learning",
        ["with the zero block" if has_zero else "blocks"],
        [(short(task.task), [f"{task.effective:.2f}"]) for task in by_task],
    )


def _layer_gates(task: str, stored: Gates, has_zero: bool) -> LayerGates:
    """Averages gates over the adapted layers of a module, such as q and v of an attention."""
    by_module: dict[str, list[list[float]]] = {}
    for name, gates in zip(stored.layers, stored.gates, strict=True):
        of_module = by_module.setdefault(name.rpartition(".")[0], [])
        of_module.append(gates if has_zero else gates[1:])
    means = [
        [fmean(block_gates) for block_gates in zip(*of_module, strict=True)]
        for of_module in by_module.values()
    ]
    return LayerGates(task, short_names(list(by_module)), means, stored.effective)
