"""Figures of one crystal: bands and density of states, energy against volume; and of many, moduli."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lamjax.reports import style
from lamjax.reports.plots import Target
from lamjax.reports.style import AFTER, BEFORE, BLUE


def bands(
    path: Target,
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
    caption = "Right: density of states over a mesh of wave vectors."
    with style.figure(path, (4.5, 5), (1, 2), title, caption, sharey=True, width_ratios=(3, 1)) as (left, right):
        breaks = np.flatnonzero(np.diff(distances) <= 1e-12) + 1
        for part in np.split(np.arange(len(distances)), breaks):
            left.plot(np.asarray(distances)[part], frequencies[part], color=BLUE, linewidth=1.1)
            unstable = np.where(frequencies[part] < -0.1, frequencies[part], np.nan)
            left.plot(np.asarray(distances)[part], unstable, color=AFTER, linewidth=1.6)
        left.set_xticks([place for place, _ in ticks], [name.replace("G", "Γ") for _, name in ticks])
        left.set(ylabel="frequency (THz), imaginary ones negative", xlim=(0, max(distances)))
        right.fill_betweenx(grid, density, color=BLUE, alpha=0.3)
        right.plot(density, grid, color=BLUE, linewidth=1)
        right.set(xlabel="modes of a cell per THz")
        right.set_xlim(left=0)
        for ax in (left, right):
            ax.axhline(0, color=BEFORE, linewidth=1)


def energy_of_volume(path: Target, volumes: ArrayLike, energies: ArrayLike, curve: tuple, title: str) -> None:
    """Energies per cell (dots, relative to the least of the curve) and a fitted `curve` (volumes, energies)."""
    caption = "Dots: relaxed at each volume; line: Birch-Murnaghan."
    with style.figure(path, (6, 4.5), title=title, caption=caption) as (ax,):
        least = float(np.min(curve[1]))
        ax.plot(curve[0], 1e3 * (np.asarray(curve[1]) - least), color=BLUE, linewidth=1.3)
        ax.plot(volumes, 1e3 * (np.asarray(energies) - least), "o", color=AFTER)
        ax.set(xlabel="volume of the cell (Å³)", ylabel="energy above the least (meV)")


def histograms(path: Target, panels: Mapping[str, ArrayLike], title: str) -> None:
    """One histogram of each quantity."""
    with style.figure(path, (5.2, 4), (1, len(panels)), title) as axes:
        for ax, (quantity, values) in zip(axes, panels.items(), strict=True):
            style.histogram(ax, [np.asarray(values)], [AFTER])
            ax.set(xlabel=quantity, ylabel="crystals")
