"""Figures of one crystal: bands and density of states, energy against volume; and of many, moduli."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lamjax.reports.plots import AFTER, BEFORE, STYLE


def bands(
    path: str | Path,
    distances: ArrayLike,
    frequencies: np.ndarray,
    ticks: Sequence[tuple[float, str]],
    modes: np.ndarray,
    title: str,
) -> None:
    """Frequencies (THz) along a path through the Brillouin zone, and beside it the density of states of `modes`.

    Imaginary frequencies are drawn as negative ones, and red.
    """
    frequencies, low = np.asarray(frequencies), float(min(np.min(frequencies), 0))
    grid = np.linspace(low - 0.5, 1.05 * float(np.max(frequencies)) + 0.5, 400)
    width = max(0.1, (grid[-1] - grid[0]) / 120)
    density = np.exp(-(((grid[:, None] - np.ravel(modes)) / width) ** 2) / 2).sum(axis=1)
    density /= width * np.sqrt(2 * np.pi) * len(modes)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        breaks = np.flatnonzero(np.diff(distances) <= 1e-12) + 1
        for part in np.split(np.arange(len(distances)), breaks):
            left.plot(np.asarray(distances)[part], frequencies[part], color="#2c6fbb", linewidth=1.1)
            unstable = np.where(frequencies[part] < -0.1, frequencies[part], np.nan)
            left.plot(np.asarray(distances)[part], unstable, color=AFTER, linewidth=1.6)
        left.set_xticks([place for place, _ in ticks], [name.replace("G", "Γ") for _, name in ticks])
        left.set(ylabel="frequency (THz), imaginary ones negative", xlim=(0, max(distances)))
        right.fill_betweenx(grid, density, color="#2c6fbb", alpha=0.3)
        right.plot(density, grid, color="#2c6fbb", linewidth=1)
        right.set(xlabel="modes of a cell per THz")
        right.set_xlim(left=0)
        for ax in (left, right):
            ax.axhline(0, color=BEFORE, linewidth=1)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def energy_of_volume(path: str | Path, volumes: ArrayLike, energies: ArrayLike, curve: tuple, title: str) -> None:
    """Energies per cell (dots, relative to the least of the curve) and a fitted `curve` (volumes, energies)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        ax = figure.subplots()
        least = float(np.min(curve[1]))
        ax.plot(curve[0], 1e3 * (np.asarray(curve[1]) - least), color="#2c6fbb", linewidth=1.3, label="Birch-Murnaghan")
        ax.plot(volumes, 1e3 * (np.asarray(energies) - least), "o", color=AFTER, label="relaxed at each volume")
        ax.set(xlabel="volume of the cell (Å³)", ylabel="energy above the least (meV)")
        ax.legend(frameon=False)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)


def histograms(path: str | Path, panels: Mapping[str, ArrayLike], title: str) -> None:
    """One histogram of each quantity."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (quantity, values) in zip(axes, panels.items(), strict=True):
            ax.hist(values, bins=min(40, max(8, len(values) // 5)), color=AFTER)
            ax.set(xlabel=quantity, ylabel="crystals")
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=130)
