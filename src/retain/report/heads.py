"""The attention heads that a SEEKR run chose: reading them, their tables and their picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from retain.errors import RetainError
from retain.report.layout import TASKS_PER_TABLE, cuts, new_table, short
from retain.report.plots import CHARACTER, MARGIN, TITLE_HEIGHT, as_png, as_svg, new_panel
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import HEADS, MEMORY, TEACHER, Heads
from retain.system.files import read_jsonl, write_bytes

ROWS = 40
"""Most rows of the table of heads; a model with more attention modules has several in a row."""
TASKS_IN_PICTURE = 8
"""Most head maps side by side in the picture."""
WORDS = (
    "A head's score grows with how much it counts for the answers (sensitivity) and how far its "
    "attention moved (forgettability), over the tasks so far. The heads that scored highest are "
    "chosen: their attention is kept by replay. Jaccard: heads that two tasks both chose, over "
    "those that either chose; 1 is the same heads."
)
OVERLAP = "Overlap of the chosen heads (Jaccard)"


@dataclass(frozen=True)
class TaskHeads:
    """The heads after one task; both lists are layers × heads, layers in calling order.

    `score` is what heads were chosen by, accumulated over the tasks so far; `selected` says which.
    """

    task: str
    score: list[list[float]]
    selected: list[list[bool]]

    @property
    def chosen(self) -> set[tuple[int, int]]:
        """The chosen heads as (layer, head)."""
        return {
            (layer, head)
            for layer, row in enumerate(self.selected)
            for head, is_chosen in enumerate(row)
            if is_chosen
        }


@dataclass(frozen=True)
class HeadMaps:
    """What a SEEKR run kept: its heads, task by task, and how large its memory is.

    `modules` are the attention modules in the order in which the model calls them, `examples` the
    number of kept examples, `size` the bytes on disk of these with the model's signals on them.
    """

    label: str
    modules: list[str]
    tasks: list[TaskHeads]
    examples: int
    size: int


def read_heads(run: RunDirectory) -> HeadMaps:
    """Reads what a SEEKR run says about its heads, without loading its model.

    Raises:
        RetainError: when the run has no heads, or a file is damaged.
    """
    method = results.settings(run).method.name
    learned = run.learned()
    if not learned or not all(run.commits(folder / HEADS) for folder in learned):
        remedy = " yet; let it finish a task" if method == "seekr" else "; give a run of seekr"
        raise RetainError(f"{run.path}: nothing to inspect for method '{method}'{remedy}")
    modules: list[str] = []
    tasks: list[TaskHeads] = []
    examples = size = 0
    for folder in learned:
        stored = results.read_required(run, folder / HEADS, Heads)
        modules = stored.modules
        selected = [[bool(value) for value in row] for row in stored.selected]
        task = " ".join(results.task_record(run, folder).name.split())
        tasks.append(TaskHeads(task, stored.score, selected))
        kept = [folder / MEMORY, *results.below(run, folder / TEACHER)]
        size += sum(path.stat().st_size for path in kept if results.holds(run, path))
        examples += len(read_jsonl(folder / MEMORY))
    return HeadMaps(run.path.resolve().name, modules, tasks, examples, size)


# -- numbers


def overlap(tasks: Sequence[TaskHeads]) -> list[list[float]]:
    """Of each two tasks the Jaccard index of their chosen heads: shared / chosen by either."""
    chosen = [task.chosen for task in tasks]  # never empty: the smallest budget is one head
    return [[len(a & b) / len(a | b) for b in chosen] for a in chosen]


def thirds(count: int) -> list[int]:
    """0, 1 or 2 for each of `count` modules in calling order: first, middle, last.

    Symmetric, so that of two modules one is first and one last.
    """
    return [(2 * i + 1) * 3 // (2 * count) for i in range(count)]


def short_names(modules: Sequence[str]) -> list[str]:
    """What tells attention modules from each other: "layer 3", or "decoder.3.EncDec".

    Parts that all names share are left out, except the layer's number, and so are further numbers
    where the rest is enough. Names that are not built alike stay whole.
    """
    parts = [name.split(".") for name in modules]
    if len({len(each) for each in parts}) > 1:
        return list(modules)
    columns = [c for c in zip(*parts, strict=True) if c[0].isdigit() or len(set(c)) > 1]
    numbers = [column for column in columns if column[0].isdigit()]
    fewer = [column for column in columns if column not in numbers[1:]]
    if len(set(zip(*fewer, strict=True))) == len(modules):
        columns = fewer
    names = [".".join(each) for each in zip(*columns, strict=True)]
    names = [re.sub(r"(?<=\w)_?(attention|attn)$", "", name, flags=re.IGNORECASE) for name in names]
    return [f"layer {name}" if name.isdigit() else name for name in names]


# -- tables


def heads_table(maps: HeadMaps, columns: range | None = None) -> Table:
    """How many heads each task chose in each attention module, and the modules' share of the score.

    The share is a module's summed score after the run's last task over that of all modules.
    `columns` limits the table to these task indices; the share stands beside the last task.
    """
    columns = columns if columns is not None else range(len(maps.tasks))
    last = maps.tasks[-1]
    step = -(-len(maps.modules) // ROWS)
    title = f"Heads chosen in each attention module, of {len(last.score[0])}"
    if step > 1:
        title = f"Heads chosen in {step} attention modules a row, of {len(last.score[0])} each"
    ends = columns.stop == len(maps.tasks)
    names = [short(maps.tasks[j].task) for j in columns]
    table = _titled(title, [*names, "share of score"] if ends else names)
    total = sum(map(sum, last.score)) or 1.0  # nothing moved: no module has a share

    def add(label: str, rows: slice) -> None:
        counts = [str(sum(map(sum, maps.tasks[j].selected[rows]))) for j in columns]
        share = f"{sum(map(sum, last.score[rows])) / total:.1%}"
        table.add_row(Text(label), *counts, *([share] if ends else []))

    modules = short_names(maps.modules)
    for start in range(0, len(modules), step):
        group = modules[start : start + step]
        more = f" +{len(group) - 1}" if len(group) > 1 else ""
        add(short(group[0]) + more, slice(start, start + step))
    table.add_section()
    add("all", slice(None))
    return table


def overlap_table(maps: HeadMaps, columns: range | None = None) -> Table:
    """The Jaccard index (0..1) of the heads that each two tasks chose.

    Columns are headed by the tasks' numbers, counted from 1; `columns` limits them as above.
    """
    columns = columns if columns is not None else range(len(maps.tasks))
    table = _titled(OVERLAP, [str(j + 1) for j in columns])
    rows = zip(maps.tasks, overlap(maps.tasks), strict=True)
    for number, (task, row) in enumerate(rows, start=1):
        table.add_row(Text(f"{number} {short(task.task)}"), *(f"{row[j]:.2f}" for j in columns))
    return table


def _titled(title: str, columns: Sequence[str]) -> Table:
    """A table whose title and row labels stay on one line."""
    table = new_table(title, columns)
    table.min_width = len(title)
    table.columns[0].no_wrap = True
    return table


def tables(maps: HeadMaps, most: int = TASKS_PER_TABLE) -> list[Table]:
    """All tables, with at most so many tasks side by side in one, and words under the last."""
    parts = cuts(len(maps.tasks), most)
    found = [heads_table(maps, columns) for columns in parts]
    found += [overlap_table(maps, columns) for columns in parts]
    found[-1].caption, found[-1].caption_justify = WORDS, "left"
    return found


def depth_sentence(maps: HeadMaps) -> str:
    """Where the last task's chosen heads lie among the attention modules in calling order."""
    last, third = maps.tasks[-1], thirds(len(maps.modules))
    chosen = [third[layer] for layer, _ in last.chosen]
    places = ("attention modules called first", "called in the middle", "called last")
    parts = [
        f"{chosen.count(i)} ({chosen.count(i) / len(chosen):.0%}) in the {third.count(i)} {place}"
        for i, place in enumerate(places)
    ]
    return f"Heads chosen after {last.task}: {len(chosen)}, of them {', '.join(parts)}."


def memory_sentence(maps: HeadMaps) -> str:
    """How large the memory is, and that it holds people's data."""
    examples = "1 example" if maps.examples == 1 else f"{maps.examples:,} examples"
    return (
        f"Memory: {examples}, {maps.size:,} bytes with the model's signals on them; "
        "this is user data, to be treated like the training data."
    )


# -- the picture; lengths in inches

_MAP_WIDTH, _MAP_HEIGHT = 2.2, 6.0  # of a map, before its cells become too small or too large
_SMALLEST, _LARGEST = 0.06, 0.2  # side of a cell
_LEGEND = (3.6, 1.0)  # width and height
_COLOURS = "Blues"
_MARK = "#e8590c"
_SCALE = PowerNorm(0.5, 0, 1)  # a few heads have most of the score; the root lets the others show


def heads_png(maps: HeadMaps, path: Path) -> None:
    """Writes the head maps of the last `TASKS_IN_PICTURE` tasks and their overlap as one PNG.

    Characters that matplotlib's DejaVu Sans lacks (such as Chinese) appear as boxes, with a
    UserWarning from matplotlib.
    """
    write_bytes(path, as_png(lambda: _figure(maps)))


def heads_svg(maps: HeadMaps) -> str:
    """The same as an `<svg>` element."""
    return as_svg(lambda: _figure(maps), f"Attention heads of {maps.label}")


def _figure(maps: HeadMaps) -> Figure:
    tasks = maps.tasks[-TASKS_IN_PICTURE:]
    names = [task.task for task in tasks]
    title = f"{maps.label}: attention heads"
    if len(tasks) < len(maps.tasks):
        title += f", last {len(tasks)} of {len(maps.tasks)} tasks"
    labels = [short(name) for name in short_names(maps.modules)]
    layers, heads = len(labels), len(tasks[0].score[0])
    cell = (_side(_MAP_WIDTH, heads), _side(_MAP_HEIGHT, layers))
    lengths = [heads * cell[0], *(CHARACTER * cell_len(short(name)) for name in names)]
    step = max(lengths) + 2 * MARGIN
    first = CHARACTER * max(map(cell_len, labels)) + 2 * MARGIN
    matrix = new_panel(overlap(tasks), names, names, OVERLAP, 1.0)
    right = first + max(step * len(tasks), _LEGEND[0])
    foot = TITLE_HEIGHT + layers * cell[1] + 2 * MARGIN
    width = max(right + matrix.width, 1.6 * CHARACTER * cell_len(title))
    body = max(foot + _LEGEND[1], matrix.height)
    figure = Figure(figsize=(width, body + TITLE_HEIGHT))
    figure.text(MARGIN / width, 1 - 0.3 / (body + TITLE_HEIGHT), title, fontsize=13, va="center")
    axes = figure.add_axes((0, 0, 1, body / (body + TITLE_HEIGHT)))
    axes.set_axis_off()
    _draw_labels(axes, labels, first - MARGIN / 2, cell[1])
    for number, task in enumerate(tasks):
        _draw_map(axes, task, first + number * step, cell)
    _draw_legend(axes, first, foot + MARGIN)
    matrix.draw(axes, right)
    axes.set_aspect("auto")
    axes.set_xlim(0, width)
    axes.set_ylim(body, 0)
    return figure


def _side(room: float, count: int) -> float:
    return min(_LARGEST, max(_SMALLEST, room / count))


def _draw_labels(axes: Axes, labels: Sequence[str], right: float, height: float) -> None:
    """Names of modules, as many as there is room for."""
    for i in range(0, len(labels), int(-(-0.14 // height))):
        y = TITLE_HEIGHT + (i + 0.5) * height
        axes.text(right, y, labels[i], fontsize=8, ha="right", va="center")


def _draw_map(axes: Axes, task: TaskHeads, x0: float, cell: tuple[float, float]) -> None:
    width, height = cell
    highest = max(map(max, task.score)) or 1.0
    right, foot = x0 + len(task.score[0]) * width, TITLE_HEIGHT + len(task.score) * height
    axes.text(x0, TITLE_HEIGHT / 2, short(task.task), fontsize=9, va="center")
    axes.imshow(
        [[value / highest for value in row] for row in task.score],
        cmap=_COLOURS,
        norm=_SCALE,
        extent=(x0, right, foot, TITLE_HEIGHT),
        interpolation="nearest",
    )
    for head in range(0, len(task.score[0]), int(-(-0.2 // width))):
        x = x0 + (head + 0.5) * width
        axes.text(x, foot + 0.1, str(head), fontsize=7, ha="center", va="center")
    outlines = [
        Rectangle((x0 + head * width, TITLE_HEIGHT + layer * height), width, height)
        for layer, head in sorted(task.chosen)
    ]
    axes.add_collection(
        PatchCollection(
            outlines, facecolor="none", edgecolor=_MARK, linewidth=max(1.0, 7 * min(cell))
        )
    )


def _draw_legend(axes: Axes, x0: float, y: float) -> None:
    side, room = 0.16, 1.0
    top = y - side / 2
    extent = (x0, x0 + room, top + side, top)
    axes.imshow([[i / 99 for i in range(100)]], cmap=_COLOURS, norm=_SCALE, extent=extent)
    axes.text(x0 + room + 0.1, y, "score, from 0 to the task's highest", fontsize=8, va="center")
    mark = Rectangle((x0, top + 0.25), side, side, fill=False, edgecolor=_MARK, linewidth=1.4)
    axes.add_patch(mark)
    axes.text(x0 + side + 0.1, y + 0.25, "chosen", fontsize=8, va="center")
    words = "rows: attention modules in calling order; columns: heads"
    axes.text(x0, y + 0.5, words, fontsize=8, va="center")
