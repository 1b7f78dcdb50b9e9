"""Diagnostics of routing: each task's weights over the blocks, after learning it and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.sections import Grid, HeatMap, Section

WEIGHTS = "Each number is the weight that a block's output has."
SHARES = "Each number is a block's share of the attention, from 0 to 1; a row sums to 1."


@dataclass(frozen=True)
class Routing:
    """Mean weights over the blocks on each task's test prompts, oldest task first.

    Attributes:
        tasks: the names of the T tasks.
        after: row i (from 0) has the weights of task i right after it was learned, when there were
            i + 1 blocks.
        now: the weights (T, T) after the newest task; a row per task, a column per block.
    """

    tasks: list[str]
    after: list[list[float]]
    now: list[list[float]]


def read_routing(run: RunDirectory) -> Routing | None:
    """Reads a run's routing; None without scores, or if a task lacks a weight for some block.

    Raises:
        RetainError: when a file is damaged.
    """
    rows = results.rows(run)
    now = [weights or [] for weights in rows[-1].routing] if rows else []
    if not now or any(len(weights) != len(now) for weights in now):
        return None
    names = [results.task_record(run, folder).name for folder in run.learned()[: len(rows)]]
    after = [row.routing[i] or [] for i, row in enumerate(rows)]
    return Routing([" ".join(name.split()) for name in names], after, now)


def routing_section(
    routing: Routing,
    numbers: str = SHARES,
    grids: Sequence[Grid] = (),
    pictures: Sequence[HeatMap] = (),
    task: str | None = None,
) -> Section:
    """Returns the section on a run's routing.

    Args:
        routing: the weights, from `read_routing`.
        numbers: a sentence that explains the weights.
        grids: further tables, shown below.
        pictures: further pictures, shown beside.
        task: as in `Section`.
    """
    names = routing.tasks
    return Section(
        "Attention over the blocks",
        [
            _weights("Attention over the blocks right after learning", names, routing.after),
            _weights("Attention over the blocks now", names, routing.now),
            *grids,
        ],
        [
            HeatMap("Right after learning", names, names, routing.after),
            HeatMap("Now", names, names, routing.now),
            *pictures,
        ],
        caption=(
            "Each row is a task, each column the block learned with that task; means over test "
            f"prompts. {numbers}"
        ),
        task=task,
    )


def routing_diagnostics(run: RunDirectory, numbers: str = SHARES) -> list[Section]:
    """Returns the section on a run's routing, if any; `numbers` explains the weights."""
    routing = read_routing(run)
    return [] if routing is None else [routing_section(routing, numbers)]


def _weights(title: str, tasks: Sequence[str], weights: Sequence[Sequence[float]]) -> Grid:
    rows = [
        (f"{number} {short(task)}", [f"{weight:.2f}" for weight in row])
        for number, (task, row) in enumerate(zip(tasks, weights, strict=True), start=1)
    ]
    columns = [str(number) for number in range(1, len(tasks) + 1)]
    return Grid(title, columns, rows, per_task=range(len(tasks)))
