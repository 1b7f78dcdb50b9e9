"""Pictures of large maps side by side, with some cells outlined; lengths are in inches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from retain.report.plots import CHARACTER, MARGIN, TITLE_CHARACTER, TITLE_HEIGHT
from retain.runs.labels import short
from retain.runs.sections import MarkedMap, MarkedMaps

_MAP_WIDTH, _MAP_HEIGHT = 2.2, 6.0  # of a map, before its cells become too small or too large
_SMALLEST, _LARGEST = 0.06, 0.2  # side of a cell
_LEGEND = (3.6, 1.0)  # width and height
_COLOURS = "Blues"
_MARK = "#e8590c"
_SCALE = PowerNorm(0.5, 0, 1)  # a few cells may have most of the sum; the root lets others show
_TOP = 2 * TITLE_HEIGHT  # of the cells: the picture's title and the maps' titles are above them


@dataclass(frozen=True)
class MapsPanel:
    """Several maps and their legend, ready to be drawn."""

    maps: MarkedMaps

    @property
    def title(self) -> str:
        """The picture's."""
        return self.maps.title

    @property
    def width(self) -> float:
        """Of the panel, in inches."""
        body = self._left + max(self._step * len(self.maps.maps), _LEGEND[0])
        return max(body, TITLE_CHARACTER * cell_len(self.title) + 2 * MARGIN)

    @property
    def height(self) -> float:
        """Of the panel, in inches."""
        return self._foot + _LEGEND[1]

    def draw(self, axes: Axes, offset: float) -> None:
        """Draws with the left edge at `offset` inches on axes in inches, y downwards."""
        axes.text(offset + MARGIN, TITLE_HEIGHT / 2, self.title, fontsize=13, va="center")
        left = offset + self._left
        _draw_labels(axes, self._labels, left - MARGIN / 2, self._cell[1])
        for number, each in enumerate(self.maps.maps):
            _draw_map(axes, each, left + number * self._step, self._cell)
        _draw_legend(axes, self.maps, left, self._foot + MARGIN)

    @property
    def _labels(self) -> list[str]:
        return [short(name) for name in self.maps.rows]

    @property
    def _cell(self) -> tuple[float, float]:
        """Width and height of a cell."""
        columns = len(self.maps.maps[0].values[0])
        return (_side(_MAP_WIDTH, columns), _side(_MAP_HEIGHT, len(self.maps.rows)))

    @property
    def _left(self) -> float:
        """Room for the row labels."""
        return CHARACTER * max(map(cell_len, self._labels)) + 2 * MARGIN

    @property
    def _step(self) -> float:
        """From one map to the next."""
        cells = self._cell[0] * len(self.maps.maps[0].values[0])
        titles = (CHARACTER * cell_len(short(each.title)) for each in self.maps.maps)
        return max(cells, *titles) + 2 * MARGIN

    @property
    def _foot(self) -> float:
        """Where the legend begins."""
        return _TOP + len(self.maps.rows) * self._cell[1] + 2 * MARGIN


def _side(room: float, count: int) -> float:
    return min(_LARGEST, max(_SMALLEST, room / count))


def _draw_labels(axes: Axes, labels: Sequence[str], right: float, height: float) -> None:
    """Row labels, as many as there is room for."""
    for i in range(0, len(labels), int(-(-0.14 // height))):
        y = _TOP + (i + 0.5) * height
        axes.text(right, y, labels[i], fontsize=8, ha="right", va="center")


def _draw_map(axes: Axes, one: MarkedMap, x0: float, cell: tuple[float, float]) -> None:
    width, height = cell
    highest = max(map(max, one.values)) or 1.0
    right, foot = x0 + len(one.values[0]) * width, _TOP + len(one.values) * height
    axes.text(x0, _TOP - TITLE_HEIGHT / 2, short(one.title), fontsize=9, va="center")
    axes.imshow(
        [[value / highest for value in row] for row in one.values],
        cmap=_COLOURS,
        norm=_SCALE,
        extent=(x0, right, foot, _TOP),
        interpolation="nearest",
    )
    for column in range(0, len(one.values[0]), int(-(-0.2 // width))):
        x = x0 + (column + 0.5) * width
        axes.text(x, foot + 0.1, str(column), fontsize=7, ha="center", va="center")
    outlines = [
        Rectangle((x0 + column * width, _TOP + row * height), width, height)
        for row, column in one.marked
    ]
    axes.add_collection(
        PatchCollection(
            outlines, facecolor="none", edgecolor=_MARK, linewidth=max(1.0, 7 * min(cell))
        )
    )


def _draw_legend(axes: Axes, maps: MarkedMaps, x0: float, y: float) -> None:
    side, room = 0.16, 1.0
    top = y - side / 2
    extent = (x0, x0 + room, top + side, top)
    axes.imshow([[i / 99 for i in range(100)]], cmap=_COLOURS, norm=_SCALE, extent=extent)
    axes.text(x0 + room + 0.1, y, maps.scale, fontsize=8, va="center")
    mark = Rectangle((x0, top + 0.25), side, side, fill=False, edgecolor=_MARK, linewidth=1.4)
    axes.add_patch(mark)
    axes.text(x0 + side + 0.1, y + 0.25, maps.mark, fontsize=8, va="center")
    axes.text(x0, y + 0.5, maps.axes, fontsize=8, va="center")
