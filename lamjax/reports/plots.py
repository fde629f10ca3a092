"""One plot a result, PNG and SVG, readable without the text around it. matplotlib without a display."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lamjax.reports import style
from lamjax.reports.style import AFTER, BEFORE, BETTER, BLUE, LINES, WORSE

MOST_NAMED = 40  # structures that a panel names one by one
Target = str | Path | StringIO  # a PNG file, SVG is written beside it; a stream takes SVG
MOVES = "Grey: before, red: after; green bars: smaller after, orange bars: larger. Dashed: medians."


class Comparison(NamedTuple):
    """A quantity of structures before and after training."""

    names: Sequence[str]
    before: np.ndarray
    after: np.ndarray
    quantity: str


class TrainingCurve(NamedTuple):
    """A quantity along training."""

    values: Sequence[float]  # one for each step
    label: str
    window: int  # steps of which the mean is drawn, an epoch, say


def before_after(
    path: Target,
    structures: Comparison,
    title: str,
    curve: TrainingCurve,
    costs: Mapping[str, tuple[float, float]],
    costs_label: str,
) -> None:
    """Per structure, how a quantity moved (grey: before, red: after), sorted by the value before.

    A second panel shows how training went, a third one errors on other data before and after, `costs` {data: (before,
    after)}.
    """
    n = len(structures.names)
    caption = f"Left: {n} structures. {MOVES}"
    with style.figure(path, (5.6, max(3.5, 0.32 * n + 1.6)), (1, 3), title, caption) as (left, middle, right):
        _dumbbells(left, structures)
        _curve(middle, np.asarray(curve.values), curve.label, curve.window)
        _bars(right, costs, costs_label)


def distribution(path: Target, structures: Comparison, title: str) -> None:
    """Per structure, how a quantity moved, and beside it which share of the structures is below each value.

    Of more than `MOST_NAMED` structures the left panel is a scatter plot: below the diagonal is better.
    """
    names, before, after, quantity = structures
    many = len(names) > MOST_NAMED
    height = 5.0 if many else max(3.5, 0.32 * len(names) + 1.6)
    caption = f"{len(names)} structures. " + (
        "Green: smaller after, orange: larger. Dashed: medians." if many else MOVES
    )
    with style.figure(path, (6.5, height), (1, 2), title, caption) as (left, right):
        (_diagonal if many else _dumbbells)(left, structures)
        for values, color in ((before, BEFORE), (after, AFTER)):
            share = np.arange(1, len(values) + 1) / len(values)
            right.step(np.sort(values), share, where="post", color=color)
            right.axvline(np.median(values), color=color, linestyle="--", linewidth=1)
        right.set(xlabel=quantity, ylabel="share of structures below", ylim=(0, 1.02))
        right.set_xlim(left=0)
        ends = {"before": (before, BEFORE), "after": (after, AFTER)}
        style.name_points(right, {name: ((np.quantile(x, 0.8), 0.78), color) for name, (x, color) in ends.items()})


def relaxations(
    path: Target, steps: ArrayLike, converged: Sequence[bool], panels: Mapping[str, ArrayLike], title: str
) -> None:
    """Numbers of finished relaxations against steps, and a histogram of each quantity of `panels`.

    Those that did not converge are shown apart.
    """
    steps, done = np.asarray(steps), np.asarray(converged, bool)
    caption = f"Red: the {done.sum()} that have converged, grey: the {(~done).sum()} that have not; dashed: all."
    with style.figure(path, (5.2, 4.0), (1, 1 + len(panels)), title, caption) as axes:
        order = np.sort(steps[done])
        axes[0].step([0, *order, max(steps)], [*range(len(order) + 1), len(order)], where="post", color=AFTER)
        axes[0].axhline(len(steps), color=BEFORE, linestyle="--", linewidth=1)
        axes[0].set(xlabel="steps", ylabel="structures that have converged", ylim=(0, 1.05 * len(steps)))
        axes[0].set_xlim(left=0)
        for ax, (quantity, values) in zip(axes[1:], panels.items(), strict=True):
            values = np.asarray(values)
            style.histogram(ax, [values[done], values[~done]], [AFTER, BEFORE])
            ax.set(xlabel=quantity, ylabel="structures")
        for ax in axes:
            ax.locator_params(axis="y", integer=True)


def learning_curve(
    path: Target,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    title: str,
    along: str = "training step",
    levels: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Errors (logarithmic) against training steps: {quantity: {line: (steps, errors)}}, a panel a quantity.

    `levels` {quantity: {name: value}} are drawn across as dashed lines, if positive.
    """
    with style.figure(path, (5.2, 4.0), (1, len(panels)), title) as axes:
        for ax, (quantity, lines) in zip(axes, panels.items(), strict=True):
            for (name, (steps, values)), color in zip(lines.items(), LINES, strict=False):
                marker = "o" if len(np.ravel(steps)) < 3 else None
                ax.semilogy(steps, values, label=name, color=color, marker=marker, markersize=5)
            drawn = {name: value for name, value in (levels or {}).get(quantity, {}).items() if value > 0}
            for name, value in drawn.items():
                ax.axhline(value, color=BEFORE, linestyle="--", linewidth=1)
                ax.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
            ax.set(xlabel=along, ylabel=quantity)
            ax.locator_params(axis="x", nbins=5, integer=True, min_n_ticks=1)
            ax.yaxis.set_major_formatter("{x:g}")
            least, most = ax.get_ylim()
            ax.yaxis.set_minor_formatter("{x:g}" if most < 15 * least else "")
            if len(lines) > 1 or next(iter(lines), ""):
                style.name_lines(ax)


def series(path: Target, x: ArrayLike, label: str, panels: Mapping[str, Mapping[str, ArrayLike]], title: str) -> None:
    """Quantities over time, {quantity: {line: values}}, the first four; a lone line gets its running mean, too."""
    chosen = dict(list(panels.items())[: style.MOST_PANELS])
    x, n = np.asarray(x), len(chosen)
    rows, columns = -(-n // 2), min(n, 2)
    window = len(x) // 20
    alone = window > 1 and any(len(lines) == 1 for lines in chosen.values())
    caption = f"Red: mean of {window} records." if alone else ""
    with style.figure(path, (6.0, 3.1), (rows, columns), title, caption, sharex=True) as axes:
        for ax, (quantity, lines) in zip(axes, chosen.items(), strict=False):
            for (name, values), color in zip(lines.items(), LINES, strict=False):
                ax.plot(x, values, color=color, linewidth=0.9, label=name)
            if len(lines) == 1 and window > 1:
                smooth = np.convolve(next(iter(lines.values())), np.ones(window) / window, mode="valid")
                middle = np.convolve(x, np.ones(window) / window, mode="valid")
                ax.plot(middle, smooth, color=AFTER, linewidth=2)
            ax.set(ylabel=quantity)
            ax.ticklabel_format(axis="y", useOffset=False)
            if len(lines) > 1:
                style.name_lines(ax)
        for ax in axes[n:]:
            ax.remove()
        for ax in axes[max(0, n - columns) : n]:
            ax.set_xlabel(label)
            ax.tick_params(labelbottom=True)


def parity(path: Target, panels: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str) -> None:
    """Predicted against reference values, {quantity: (reference, predicted)}, with the line of equality and RMSE."""
    with style.figure(path, (4.8, 4.8), (1, len(panels)), title) as axes:
        for ax, (quantity, (reference, predicted)) in zip(axes, panels.items(), strict=True):
            x, y = np.asarray(reference), np.asarray(predicted)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            ax.plot(ends, ends, color=BEFORE, linewidth=1)
            size, alpha = (6, 0.4) if len(x) > 300 else (24, 0.7)
            ax.scatter(x, y, s=size, alpha=alpha, color=BLUE, edgecolors="none", rasterized=True)
            ax.set(xlabel=f"reference {quantity}", ylabel=f"predicted {quantity}")
            ax.set_title(f"RMSE {np.sqrt(np.mean((x - y) ** 2)):.3g}, {len(x)} values")


def _dumbbells(axes: Any, structures: Comparison) -> None:
    names, before, after, quantity = structures
    order = np.argsort(before)
    rows = np.arange(len(order))
    better = after[order] < before[order]
    axes.hlines(rows, before[order], after[order], color=np.where(better, BETTER, WORSE), linewidth=3, zorder=1)
    axes.scatter(before[order], rows, color=BEFORE, s=42, zorder=2)
    axes.scatter(after[order], rows, color=AFTER, s=42, zorder=3)
    axes.axvline(np.median(before), color=BEFORE, linestyle="--", linewidth=1)
    axes.axvline(np.median(after), color=AFTER, linestyle="--", linewidth=1)
    axes.set_yticks(rows, [names[k] for k in order], fontsize=9)
    axes.set_xlim(left=0)
    axes.set(xlabel=quantity)


def _diagonal(axes: Any, structures: Comparison) -> None:
    _, before, after, quantity = structures
    top = 1.05 * max(before.max(), after.max(), 1e-12)
    axes.plot([0, top], [0, top], color=BEFORE, linewidth=1)
    better = after < before
    axes.scatter(before, after, s=14, color=np.where(better, BETTER, WORSE), edgecolors="none")
    axes.set_title(f"smaller for {better.sum()} of {len(before)} structures")
    axes.set(xlabel=f"{quantity} before", ylabel=f"{quantity} after", xlim=(0, top), ylim=(0, top))


def _curve(axes: Any, values: Any, label: str, window: int) -> None:
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, color=BEFORE, linewidth=0.8, alpha=0.7)
    if 1 < window <= len(values):
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=AFTER, linewidth=2)
        axes.set_title(f"red: mean of {window} steps")
    axes.set(xlabel="gradient step", ylabel=label)
    axes.set_ylim(bottom=0)


def _bars(axes: Any, costs: Mapping[str, tuple[float, float]], label: str) -> None:
    """Errors on other data before and after, the change written at the bars."""
    for k, (before, after) in enumerate(costs.values()):
        axes.bar([k - 0.19, k + 0.19], [before, after], 0.36, color=[BEFORE, AFTER])
        axes.annotate(f"{100 * (after / before - 1):+.0f} %", (k, 1.02 * max(before, after)), ha="center", va="bottom")
    axes.set_xticks(range(len(costs)), list(costs))
    axes.set(ylabel=label)
    axes.set_ylim(0, 1.15 * max(max(pair) for pair in costs.values()))
