"""Style of all plots: colours that colour-blind readers can tell apart, a title, a caption, and how it is written."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
GREY, DARK = "#8c8c8c", "#333333"
BEFORE, AFTER, BETTER, WORSE = GREY, VERMILION, GREEN, ORANGE
LINES = (GREY, VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, DARK)  # of lines that have no colour of their own
MOST_PANELS = 4
DPI = 130
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.titlesize": 11,
    "svg.hashsalt": "lamjax",  # equal plots are equal files
}


@contextmanager
def figure(
    path: str | Path | StringIO,
    panel: tuple[float, float],
    shape: tuple[int, int] = (1, 1),
    title: str = "",
    caption: str = "",
    **subplots: Any,
) -> Iterator[Any]:
    """The panels (axes, row by row) of a figure that is written when the block ends: a PNG file, and SVG beside it.

    `panel` is the size of one (inches), `shape` (rows, columns), at most `MOST_PANELS` in all. The caption below says
    what the reader cannot see: how many structures and seeds, what a line or a band is. Into a stream goes SVG alone.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows, columns = shape
    if rows * columns > MOST_PANELS:
        raise ValueError(f"A figure of {rows} x {columns} panels: no more than {MOST_PANELS} can be read at a glance.")
    with matplotlib.rc_context(STYLE):
        size = (panel[0] * columns, panel[1] * rows + 0.35 * bool(title) + 0.25 * bool(caption))
        made = Figure(figsize=size, layout="constrained")
        yield made.subplots(rows, columns, squeeze=False, **subplots).ravel()
        if title:
            made.suptitle(title, fontsize=13)
        if caption:
            lines = textwrap.fill(caption, max(40, int(13.5 * size[0])))
            made.supxlabel(lines, fontsize=9, x=0.01, ha="left")
        save(made, path)


def save(made: Any, path: str | Path | StringIO) -> None:
    """A PNG file and an SVG file of the same name of matplotlib's figure; SVG alone into a stream."""
    import matplotlib

    if isinstance(path, StringIO):
        made.savefig(path, format="svg")
        return
    made.savefig(path, dpi=DPI)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        made.savefig(vector(path), metadata={"Date": None})


def vector(path: str | Path) -> Path:
    """The SVG file that lies beside a PNG file."""
    return Path(path).with_suffix(".svg")


def histogram(axes: Any, groups: Sequence[np.ndarray], colors: Sequence[str]) -> None:
    """A histogram of the finite values of groups, the bars of one group on those of the other.

    Values that are equal but for rounding, which no bins can tell apart, lie in the middle of an interval around them.
    """
    finite = [np.asarray(values, float)[np.isfinite(values)] for values in groups]
    together = np.concatenate(finite)
    bins = min(40, max(8, len(together) // 5))
    low, high = (together.min(), together.max()) if len(together) else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = max(0.5, 1e-3 * abs(high))
        low, high, bins = low - half, high + half, 9  # an odd number: the bar stands on the value
    axes.hist(finite, bins=bins, range=(low, high), stacked=True, color=list(colors))


def name_lines(axes: Any, size: float = 9) -> None:
    """The name of every line at its right end, in its colour, moved apart where two would overlap: no legend.

    The limits of the axes must have been set before.
    """
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_") and len(line.get_xdata())]
    points = {line.get_label(): (_right_end(axes, line), line.get_color()) for line in named}
    name_points(axes, points, size)


def name_points(axes: Any, points: Mapping[str, tuple[tuple[float, float], Any]], size: float = 9) -> None:
    """Names to the right of {name: ((x, y), colour)}, moved apart where two would overlap."""
    axes.figure.draw_without_rendering()  # only then it is known where the axes lie
    places = [place for place, _ in points.values()]
    heights = np.array([axes.transData.transform(place)[1] * 72 / axes.figure.dpi for place in places])
    for (name, (place, color)), shift in zip(points.items(), _apart(heights, 1.25 * size), strict=True):
        axes.annotate(
            name,
            place,
            (6, shift),
            textcoords="offset points",
            color=color,
            fontsize=size,
            va="center",
            annotation_clip=False,
        )


def _right_end(axes: Any, line: Any) -> tuple[float, float]:
    """The last point of a line that can be seen."""
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    visible = np.isfinite(x) & np.isfinite(y) & (x <= max(axes.get_xlim()) * (1 + 1e-9))
    k = int(np.flatnonzero(visible)[-1]) if visible.any() else -1
    return float(x[k]), float(y[k])


def _apart(heights: np.ndarray, least: float) -> np.ndarray:
    """Shifts of heights that put all `least` apart: those too near are spread about their middle."""
    order = np.argsort(heights, kind="stable")
    groups: list[list[int]] = []
    for k in order:
        groups.append([int(k)])
        while len(groups) > 1 and _low(heights, groups[-1], least) - _high(heights, groups[-2], least) < least:
            last = groups.pop()
            groups[-1] += last
    shifted = heights.copy()
    for group in groups:
        shifted[group] = _low(heights, group, least) + least * np.arange(len(group))
    return shifted - heights


def _low(heights: np.ndarray, group: list[int], least: float) -> float:
    return float(heights[group].mean()) - least * (len(group) - 1) / 2


def _high(heights: np.ndarray, group: list[int], least: float) -> float:
    return float(heights[group].mean()) + least * (len(group) - 1) / 2
