"""Heat maps and curves, as inline SVG or as one PNG picture."""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from rich.cells import cell_len

from retain.runs.labels import short
from retain.runs.records import Sample
from retain.system.files import write_bytes
from retain.system.printing import escaped

# Lengths in inches. Room for labels follows from their length in characters, not from measured
# glyphs, because the font that shows an SVG is chosen by the reader's browser.
_CELL = 0.58
_GAP = 0.03
CHARACTER = 0.08
TITLE_CHARACTER = 0.11
TITLE_HEIGHT = 0.5
MARGIN = 0.15
_CURVES = (4.6, 2.2)  # width with the axis, height without
_AXIS = 0.55
_COLOURS = ("#3b8ede", "#e8743b", "#2fa36b", "#c566c9", "#d9a400", "#e0556b", "#4aa3a3")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "retain",
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]


class Drawing(Protocol):
    """A picture that can stand beside others; lengths are in inches."""

    @property
    def title(self) -> str:
        """Its title, also read out to those who do not see it."""

    @property
    def width(self) -> float:
        """In inches."""

    @property
    def height(self) -> float:
        """In inches."""

    def draw(self, axes: Axes, offset: float) -> None:
        """Draws with the left edge at `offset` inches on axes in inches, y downwards."""


@dataclass(frozen=True)
class Panel:
    """One heat map; the properties are lengths in inches.

    A cell whose (row, column) is among `samples` has its standard error below its value.
    """

    matrix: Sequence[Sequence[float | None]]
    rows: list[str]
    columns: list[str]
    title: str
    vmax: float
    samples: Mapping[tuple[int, int], Sample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows or not self.columns or len(self.rows) != len(self.matrix):
            raise ValueError(
                f"a heat map needs a label per row and at least one row and column; got "
                f"{len(self.matrix)} rows, {len(self.rows)} row and {len(self.columns)} column "
                "labels"
            )
        widest = max(len(row) for row in self.matrix)
        if widest > len(self.columns):
            raise ValueError(f"a row has {widest} values but there are {len(self.columns)} columns")

    @property
    def slant(self) -> float:
        """Width and height of the longest column label at 45 degrees."""
        return math.sqrt(0.5) * CHARACTER * max(map(cell_len, self.columns))

    @property
    def left(self) -> float:
        """Room left of the cells."""
        return max(CHARACTER * max(map(cell_len, self.rows)), self.slant - _CELL / 2) + MARGIN

    @property
    def width(self) -> float:
        """In inches."""
        cells = self.left + _CELL * len(self.columns)
        return max(cells, TITLE_CHARACTER * cell_len(self.title)) + 2 * MARGIN

    @property
    def height(self) -> float:
        """In inches."""
        return TITLE_HEIGHT + _CELL * len(self.rows) + self.slant + 2 * MARGIN

    def draw(self, axes: Axes, offset: float) -> None:
        """Draws with the left edge at `offset` inches on axes whose units are inches, y downwards.

        Text outside the cells is black, which SVG leaves out: it then takes the page's colour.
        """
        axes.text(offset + MARGIN, TITLE_HEIGHT / 2, self.title, fontsize=11, va="center")
        x0, y0 = offset + self.left, TITLE_HEIGHT
        for i, label in enumerate(self.rows):
            y = y0 + (i + 0.5) * _CELL
            axes.text(x0 - MARGIN / 2, y, label, fontsize=9, ha="right", va="center")
        foot = y0 + len(self.rows) * _CELL + MARGIN
        for j, label in enumerate(self.columns):
            axes.text(
                x0 + (j + 0.6) * _CELL,
                foot,
                label,
                fontsize=9,
                ha="right",
                va="center",
                rotation=45,
                rotation_mode="anchor",
            )
        for i, row in enumerate(self.matrix):
            for j, value in enumerate(row):
                if value is not None:
                    sample = self.samples.get((i, j))
                    words = f"{value:.1f}" if self.vmax > 1 else f"{value:.2f}"
                    words += "" if sample is None else f"\n± {sample.error:.1f}"
                    self._draw_cell(axes, x0 + j * _CELL, y0 + i * _CELL, value, words)

    def _draw_cell(self, axes: Axes, x: float, y: float, value: float, words: str) -> None:
        red, green, blue, _ = colour = matplotlib.colormaps["viridis"](value / self.vmax)
        side = _CELL - _GAP
        axes.add_patch(Rectangle((x, y), side, side, facecolor=colour, linewidth=0, clip_on=False))
        dark_text = 0.299 * red + 0.587 * green + 0.114 * blue > 0.42
        axes.text(
            x + side / 2,
            y + side / 2,
            words,
            fontsize=9,
            ha="center",
            va="center",
            color="#111111" if dark_text else "#ffffff",
        )


def heat_map(
    matrix: Sequence[Sequence[float | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    vmax: float,
    samples: Mapping[tuple[int, int], Sample] | None = None,
) -> str:
    """A heat map of `matrix` (rows may be short) as an `<svg>` element to put into an HTML page.

    Colours run from 0 to `vmax` (> 0, same unit as the values). Each cell shows its value, with
    one decimal when `vmax` is above 1 and two otherwise, and below it the standard error of a value
    that is of a sample (by row and column); None and missing cells are blank. The
    background is transparent, labels have the text colour of the page, and long ones are cut.
    Equal input gives equal output. Raises ValueError for an empty matrix or wrong label counts.
    """
    return drawing_svg(new_panel(matrix, row_labels, column_labels, title, vmax, samples))


def curves(
    lines: Sequence[Curve],
    title: str,
    x_label: str,
    marks: Sequence[float] = (),
    scale: Literal["score", "from zero", "logarithmic"] = "score",
) -> str:
    """Curves as an `<svg>` element, narrow enough for a phone, with their names below.

    Args:
        lines: at least one, each with points (x, y); NaN breaks it.
        title: above the picture.
        x_label: under the axis.
        marks: where dotted vertical lines stand.
        scale: of y; a score's goes from 0 to 100.
    """

    def draw() -> Figure:
        names = 0.22 * -(-len(lines) // 2) + 0.1
        height = names + _AXIS + _CURVES[1] + TITLE_HEIGHT
        figure = Figure(figsize=(_CURVES[0], height))
        axes = figure.add_axes((0.13, (names + _AXIS) / height, 0.85, _CURVES[1] / height))
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel(x_label, fontsize=9)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if scale == "logarithmic":
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif scale == "score":
            axes.set_ylim(-3, 103)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for mark in marks:
            axes.axvline(mark, color="#888888", linewidth=0.8, linestyle=":")
        drawn: list[Line2D] = []
        for number, line in enumerate(lines):
            colour = _COLOURS[number % len(_COLOURS)]
            style = ("-", "--", ":")[number // len(_COLOURS) % 3]
            xs, ys = zip(*line.points, strict=True)
            dots = "o" if len(line.points) < 30 else None
            drawn += axes.plot(xs, ys, style, color=colour, marker=dots, markersize=3.5)
        if scale == "from zero":
            axes.set_ylim(bottom=0)
        # Given by hand: by itself matplotlib leaves out labels that begin with "_".
        labels = [short(line.label) for line in lines]
        figure.legend(drawn, labels, loc="lower left", ncols=2, fontsize=9, frameon=False)
        return figure

    return as_svg(draw, title)


def as_svg(draw: Callable[[], Figure], title: str) -> str:
    """A figure as an `<svg>` element; its black parts take the colour of the page's text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph missing here does no harm.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure = draw()
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue().replace("stroke: #000000", "stroke: currentColor")
    # Ids would repeat when a page holds several pictures: those of groups go, as nothing refers to
    # them, and the others become this picture's own.
    svg = re.sub(r'<g id="\w+">', "<g>", svg)
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|"#|url\(#)(\w+)', rf"\g<1>{prefix}-\2", svg)
    # A narrow screen shrinks it as far as its text stays readable, and scrolls from there.
    narrowest = 0.7 * 72 * figure.get_figwidth()
    style = f"max-width: 100%; min-width: {narrowest:.0f}pt; height: auto"
    root = f'<svg fill="currentColor" role="img" aria-label={quoteattr(title)} style="{style}" '
    return root + svg[svg.index("<svg ") + len("<svg ") :]


def as_png(draw: Callable[[], Figure]) -> bytes:
    """A figure as a PNG picture, on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def drawing_svg(drawing: Drawing) -> str:
    """One drawing as an `<svg>` element."""
    return as_svg(lambda: _figure([drawing]), drawing.title)


def panels_png(panels: Sequence[Drawing], path: Path) -> None:
    """Writes drawings side by side as one PNG picture."""
    write_bytes(path, as_png(lambda: _figure(panels)))


def new_panel(
    matrix: Sequence[Sequence[float | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    vmax: float,
    samples: Mapping[tuple[int, int], Sample] | None = None,
) -> Panel:
    """A heat map in inches, ready to be drawn; ValueError for labels that do not fit."""
    rows, columns = [short(label) for label in row_labels], [short(c) for c in column_labels]
    return Panel(matrix, rows, columns, escaped(" ".join(title.split())), vmax, samples or {})


def _figure(panels: Sequence[Drawing]) -> Figure:
    width = sum(panel.width for panel in panels)
    height = max(panel.height for panel in panels)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    offset = 0.0
    for panel in panels:
        panel.draw(axes, offset)
        offset += panel.width
    axes.set_aspect("auto")  # an image in a panel would have set it, and the limits
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure
