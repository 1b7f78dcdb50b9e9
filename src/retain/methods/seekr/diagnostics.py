"""Diagnostics of a SEEKR run: the chosen attention heads by task, and the size of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retain.methods.shared.memory import MEMORY
from retain.methods.shared.module_names import short_names
from retain.methods.shared.teacher import TEACHER
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Record
from retain.runs.sections import Grid, HeatMap, MarkedMap, MarkedMaps, Section
from retain.system.files import read_jsonl

HEADS = "heads.json"
"""File of the heads' scores and choice in a task's folder."""
ROWS = 40
"""Most rows of the table of heads; with more attention modules a row stands for several."""
TASKS_IN_PICTURE = 8
"""Most head maps side by side in the picture."""
SCORE = (
    "A head's score grows with how much it counts for the answers (sensitivity) and how far its "
    "attention moved (forgettability), over the tasks so far. The heads that scored highest are "
    "chosen: their attention is kept by replay. Jaccard: heads that two tasks both chose, over "
    "those that either chose; 1 is the same heads."
)
OVERLAP = "Overlap of the chosen heads (Jaccard)"


class Heads(Record):
    """`heads.json`: attention modules in calling order; scores and choice are modules × heads."""

    modules: list[str]
    score: list[list[float]]
    selected: list[list[int]]


@dataclass(frozen=True)
class TaskHeads:
    """The attention heads after one task.

    Attributes:
        task: the task's name.
        score: the scores that heads were chosen by, over the tasks so far (modules × heads,
            modules in calling order).
        selected: which heads were chosen, likewise.
    """

    task: str
    score: list[list[float]]
    selected: list[list[bool]]

    @property
    def chosen(self) -> set[tuple[int, int]]:
        """The chosen heads as pairs of indices (module, head)."""
        return {
            (module, head)
            for module, row in enumerate(self.selected)
            for head, is_chosen in enumerate(row)
            if is_chosen
        }


@dataclass(frozen=True)
class HeadMaps:
    """The heads and the memory of a SEEKR run.

    Attributes:
        label: the run's name.
        modules: the names of the attention modules, in the order in which the model calls them.
        tasks: the heads after each task, oldest first; at least one task.
        examples: the number of kept examples.
        size: bytes on disk of the kept examples and the teacher outputs on them.
    """

    label: str
    modules: list[str]
    tasks: list[TaskHeads]
    examples: int
    size: int


def seekr_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the section on a run's heads; no section before the first task."""
    return [heads_section(read_heads(run))] if run.learned() else []


def read_heads(run: RunDirectory) -> HeadMaps:
    """Reads the heads of a run with at least one task, without loading its model.

    Raises:
        RetainError: when a file is damaged or not listed.
    """
    modules: list[str] = []
    tasks: list[TaskHeads] = []
    examples = size = 0
    for folder in run.learned():
        stored = results.read_required(run, folder / HEADS, Heads)
        modules = stored.modules
        selected = [[bool(value) for value in row] for row in stored.selected]
        name = " ".join(results.task_record(run, folder).name.split())
        tasks.append(TaskHeads(name, stored.score, selected))
        kept = [folder / MEMORY, *results.below(run, folder / TEACHER)]
        size += sum(path.stat().st_size for path in kept if results.holds(run, path))
        examples += len(read_jsonl(folder / MEMORY))
    return HeadMaps(run.path.resolve().name, modules, tasks, examples, size)


def heads_section(maps: HeadMaps) -> Section:
    """Returns the section: two tables, head maps, their overlap, and two sentences."""
    return Section(
        "Attention heads",
        [heads_grid(maps), overlap_grid(maps)],
        pictures(maps),
        [depth_sentence(maps), memory_sentence(maps)],
        SCORE,
    )


# -- numbers


def overlap(tasks: Sequence[TaskHeads]) -> list[list[float]]:
    """Computes the Jaccard index of each two tasks' chosen heads, (T, T): shared / in either."""
    chosen = [task.chosen for task in tasks]  # never empty: the smallest budget is one head
    return [[len(a & b) / len(a | b) for b in chosen] for a in chosen]


def thirds(count: int) -> list[int]:
    """Returns 0, 1 or 2 for each of `count` modules in calling order: first, middle, last.

    Symmetric, so that of two modules one is first and one last.
    """
    return [(2 * i + 1) * 3 // (2 * count) for i in range(count)]


# -- tables


def heads_grid(maps: HeadMaps) -> Grid:
    """Returns the table of the number of chosen heads by module and task, and the share of score.

    The share is a module's summed score after the last task divided by that of all modules.
    """
    last = maps.tasks[-1]
    step = -(-len(maps.modules) // ROWS)
    title = f"Heads chosen in each attention module, of {len(last.score[0])}"
    if step > 1:
        title = f"Heads chosen in {step} attention modules per row, of {len(last.score[0])} each"
    total = sum(map(sum, last.score)) or 1.0  # avoids 0/0 when no attention moved

    def cells(modules: slice) -> list[str]:
        counts = [str(sum(map(sum, task.selected[modules]))) for task in maps.tasks]
        return [*counts, f"{sum(map(sum, last.score[modules])) / total:.1%}"]

    names = short_names(maps.modules)
    rows = []
    for start in range(0, len(names), step):
        group = names[start : start + step]
        more = f" +{len(group) - 1}" if len(group) > 1 else ""
        rows.append((short(group[0]) + more, cells(slice(start, start + step))))
    rows.append(("all", cells(slice(None))))
    columns = [*(short(task.task) for task in maps.tasks), "share of score"]
    return Grid(title, columns, rows, per_task=range(len(maps.tasks)), has_total=True)


def overlap_grid(maps: HeadMaps) -> Grid:
    """Returns the table of the Jaccard index (0 to 1) of each two tasks' chosen heads."""
    pairs = zip(maps.tasks, overlap(maps.tasks), strict=True)
    rows = [
        (f"{number} {short(task.task)}", [f"{index:.2f}" for index in row])
        for number, (task, row) in enumerate(pairs, start=1)
    ]
    columns = [str(number) for number in range(1, len(rows) + 1)]
    return Grid(OVERLAP, columns, rows, per_task=range(len(rows)))


# -- sentences


def depth_sentence(maps: HeadMaps) -> str:
    """Describes where the last task's chosen heads are, by thirds of the calling order."""
    last, third = maps.tasks[-1], thirds(len(maps.modules))
    chosen = [third[module] for module, _ in last.chosen]
    places = ("attention modules called first", "called in the middle", "called last")
    parts = [
        f"{chosen.count(i)} ({chosen.count(i) / len(chosen):.0%}) in the {third.count(i)} {place}"
        for i, place in enumerate(places)
    ]
    return f"Heads chosen after {last.task}: {len(chosen)}, of them {', '.join(parts)}."


def memory_sentence(maps: HeadMaps) -> str:
    """States the size of the memory, and that it is user data."""
    examples = "1 example" if maps.examples == 1 else f"{maps.examples:,} examples"
    return (
        f"Memory: {examples}, {maps.size:,} bytes with the teacher's outputs on them; "
        "this is user data, to be treated like the training data."
    )


# -- pictures


def pictures(maps: HeadMaps) -> list[HeatMap | MarkedMaps]:
    """Returns the head maps of the last `TASKS_IN_PICTURE` tasks, and their overlap."""
    tasks = maps.tasks[-TASKS_IN_PICTURE:]
    names = [task.task for task in tasks]
    title = f"{maps.label}: attention heads"
    if len(tasks) < len(maps.tasks):
        title += f", last {len(tasks)} of {len(maps.tasks)} tasks"
    return [
        MarkedMaps(
            title,
            short_names(maps.modules),
            [MarkedMap(task.task, task.score, sorted(task.chosen)) for task in tasks],
            scale="score, from 0 to the task's highest",
            mark="chosen",
            axes="rows: attention modules in calling order; columns: heads",
        ),
        HeatMap(OVERLAP, names, names, overlap(tasks)),
    ]
