"""One plot a result, PNG, readable without the text around it. matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

BEFORE, AFTER = "#9a9a9a", "#c0392b"
MOST_NAMED = 40  # structures that a panel names one by one
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def before_after(
    path: str | Path,
    names: Sequence[str],
    before: ArrayLike,
    after: ArrayLike,
    quantity: str,
    title: str,
    curve: Sequence[float] | None = None,
    curve_label: str = "",
    window: int = 1,
) -> None:
    """Per structure, how a quantity moved (grey: before, red: after), sorted by the value before.

    With `curve` (a value for each training step) a second panel shows how training went, with its mean over `window`
    steps (an epoch, say).
    """
    with matplotlib.rc_context(STYLE):
        panels = 1 if curve is None else 2
        figure = Figure(figsize=(6.5 * panels, max(3.5, 0.32 * len(names) + 1.6)), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        _dumbbells(axes[0], names, np.asarray(before), np.asarray(after), quantity)
        if curve is not None:
            _curve(axes[1], np.asarray(curve), curve_label, window)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def distribution(
    path: str | Path, names: Sequence[str], before: ArrayLike, after: ArrayLike, quantity: str, title: str
) -> None:
    """Per structure, how a quantity moved, and beside it which share of the structures is below each value.

    Of more than `MOST_NAMED` structures the left panel is a scatter plot: below the diagonal is better.
    """
    before, after = np.asarray(before), np.asarray(after)
    with matplotlib.rc_context(STYLE):
        height = 5.0 if len(names) > MOST_NAMED else max(3.5, 0.32 * len(names) + 1.6)
        figure = Figure(figsize=(13, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        if len(names) > MOST_NAMED:
            _diagonal(left, before, after, quantity)
        else:
            _dumbbells(left, names, before, after, quantity)
        for values, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
            share = np.arange(1, len(values) + 1) / len(values)
            right.step(np.sort(values), share, where="post", color=color, label=label)
            right.axvline(np.median(values), color=color, linestyle="--", linewidth=1)
        right.set(xlabel=f"{quantity}  (dashed: medians)", ylabel="share of structures below", ylim=(0, 1.02))
        right.set_xlim(left=0)
        right.legend(frameon=False, loc="lower right")
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def relaxations(
    path: str | Path,
    steps: ArrayLike,
    converged: Sequence[bool],
    panels: Mapping[str, ArrayLike],
    title: str,
) -> None:
    """How many relaxations are done after so many steps, and a histogram of each quantity of `panels`.

    Those that did not converge are shown apart.
    """
    steps, done = np.asarray(steps), np.asarray(converged, bool)
    with matplotlib.rc_context(STYLE):
        figure, axes = _row(1 + len(panels), 5.2, 4.0)
        order = np.sort(steps[done])
        axes[0].step([0, *order, max(steps)], [*range(len(order) + 1), len(order)], where="post", color=AFTER)
        axes[0].axhline(len(steps), color=BEFORE, linestyle="--", linewidth=1, label="all")
        axes[0].set(xlabel="steps", ylabel="structures that have converged", ylim=(0, 1.05 * len(steps)))
        axes[0].set_xlim(left=0)
        axes[0].legend(frameon=False, loc="lower right")
        for ax, (quantity, values) in zip(axes[1:], panels.items(), strict=True):
            values = np.asarray(values)
            shown = [values[done], values[~done]]
            names = [f"converged ({done.sum()})", f"not converged ({(~done).sum()})"]
            ax.hist(shown, bins=min(40, max(8, len(values) // 5)), stacked=True, color=[AFTER, BEFORE], label=names)
            ax.set(xlabel=quantity, ylabel="structures")
            ax.legend(frameon=False)
        for ax in axes:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def learning_curve(
    path: str | Path,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    title: str,
    along: str = "training step",
    levels: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Errors (logarithmic) against training steps: {quantity: {line: (steps, errors)}}, a panel a quantity.

    `levels` {quantity: {name: value}} are drawn across as dashed lines, if positive.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _row(len(panels), 5.2, 4.0)
        for ax, (quantity, lines) in zip(axes, panels.items(), strict=True):
            for (name, (steps, values)), color in zip(lines.items(), (BEFORE, AFTER, "#2c6fbb"), strict=False):
                ax.semilogy(
                    steps,
                    values,
                    label=name,
                    color=color,
                    marker="o" if len(steps) < 3 else None,
                    markersize=5 if len(steps) < 3 else 3,
                )
            drawn = {name: value for name, value in (levels or {}).get(quantity, {}).items() if value > 0}
            for name, value in drawn.items():
                ax.axhline(value, color=BEFORE, linestyle="--", linewidth=1)
                ax.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
            ax.set(xlabel=along, ylabel=quantity)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            ax.yaxis.set_major_formatter("{x:g}")
            least, most = ax.get_ylim()
            ax.yaxis.set_minor_formatter("{x:g}" if most < 15 * least else NullFormatter())
            ax.legend(frameon=False)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def series(
    path: str | Path,
    x: ArrayLike,
    label: str,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    title: str,
) -> None:
    """Quantities over time, {quantity: {line: values}}; of a line that is alone in its panel the running mean, too."""
    with matplotlib.rc_context(STYLE):
        n = len(panels)
        rows, columns = -(-n // 2), min(n, 2)
        figure = Figure(figsize=(6.0 * columns, 3.1 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for ax, (quantity, lines) in zip(axes, panels.items(), strict=False):
            for (name, values), color in zip(lines.items(), (BEFORE, AFTER, "#2c6fbb"), strict=False):
                ax.plot(x, values, color=color, linewidth=0.9, label=name)
            if len(lines) == 1 and (window := len(x) // 20) > 1:
                smooth = np.convolve(next(iter(lines.values())), np.ones(window) / window, mode="valid")
                middle = np.convolve(x, np.ones(window) / window, mode="valid")
                ax.plot(middle, smooth, color=AFTER, linewidth=2, label=f"mean of {window} records")
            ax.set(ylabel=quantity)
            ax.ticklabel_format(axis="y", useOffset=False)
            if len(ax.get_lines()) > 1:
                ax.legend(frameon=False, ncols=3, fontsize=9)
        for ax in axes[n:]:
            ax.remove()
        for ax in axes[max(0, n - columns) : n]:
            ax.set_xlabel(label)
            ax.tick_params(labelbottom=True)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def parity(path: str | Path, panels: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str) -> None:
    """Predicted against reference values, {quantity: (reference, predicted)}, with the line of equality and RMSE."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _row(len(panels), 4.8, 4.8)
        for ax, (quantity, (reference, predicted)) in zip(axes, panels.items(), strict=True):
            x, y = np.asarray(reference), np.asarray(predicted)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())]
            ax.plot(ends, ends, color=BEFORE, linewidth=1)
            size, alpha = (6, 0.4) if len(x) > 300 else (24, 0.7)
            ax.scatter(x, y, s=size, alpha=alpha, color=AFTER, edgecolors="none", rasterized=True)
            ax.set(xlabel=f"reference {quantity}", ylabel=f"predicted {quantity}")
            ax.set_title(f"RMSE {np.sqrt(np.mean((x - y) ** 2)):.3g}, {len(x)} values", fontsize=11)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def _row(n: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure with n panels side by side."""
    figure = Figure(figsize=(width * n, height), layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False)[0]


def _dumbbells(axes: Any, names: Sequence[str], before: Any, after: Any, quantity: str) -> None:
    order = np.argsort(before)
    rows = np.arange(len(order))
    better = after[order] < before[order]
    axes.hlines(rows, before[order], after[order], color=np.where(better, "#7fb77e", "#e0a458"), linewidth=3, zorder=1)
    axes.scatter(before[order], rows, color=BEFORE, s=42, label="before", zorder=2)
    axes.scatter(after[order], rows, color=AFTER, s=42, label="after", zorder=3)
    axes.axvline(np.median(before), color=BEFORE, linestyle="--", linewidth=1)
    axes.axvline(np.median(after), color=AFTER, linestyle="--", linewidth=1)
    axes.set_yticks(rows, [names[k] for k in order], fontsize=9)
    axes.set_xlim(left=0)
    axes.set(xlabel=f"{quantity}  (dashed: medians)")
    axes.legend(frameon=False, loc="lower right")


def _diagonal(axes: Any, before: Any, after: Any, quantity: str) -> None:
    top = 1.05 * max(before.max(), after.max(), 1e-12)
    axes.plot([0, top], [0, top], color=BEFORE, linewidth=1)
    better = after < before
    axes.scatter(before, after, s=14, color=np.where(better, "#7fb77e", "#e0a458"), edgecolors="none")
    axes.set_title(f"smaller for {better.sum()} of {len(before)} structures", fontsize=11)
    axes.set(xlabel=f"{quantity} before", ylabel=f"{quantity} after", xlim=(0, top), ylim=(0, top))


def _curve(axes: Any, values: Any, label: str, window: int) -> None:
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, color=BEFORE, linewidth=0.8, alpha=0.7)
    if 1 < window <= len(values):
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=AFTER, linewidth=2, label=f"mean of {window} steps")
        axes.legend(frameon=False)
    axes.set(xlabel="gradient step", ylabel=label)
    axes.set_ylim(bottom=0)
