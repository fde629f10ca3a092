"""Energies of sets against each other and against what their compositions say, without being led by outliers."""

from typing import NamedTuple

import numpy as np

ROUNDS = 30  # of reweighting
FAR = 12.0  # robust standard deviations beyond which a frame is an outlier
LEAST = 0.5  # eV/atom; smaller deviations are none
FEW = 3  # frames more than elements, below which nothing is reweighted


class Fit(NamedTuple):
    """Energies per element that fit a set."""

    energies: np.ndarray  # (119,) eV, of minimal norm where undetermined; 0 for an absent element
    directions: np.ndarray  # (rank, 119) orthonormal: the compositions that the set determines
    rows: np.ndarray  # frames with an energy
    left: np.ndarray  # (n_rows,) eV/atom, energy minus fit
    width: float  # eV/atom, robust standard deviation of `left`
    far: np.ndarray  # (n_rows,) True for outliers, which the fit leaves out


def fit(counts: np.ndarray, energies: np.ndarray, rows: np.ndarray) -> Fit | None:
    """Least squares per atom of the energies (eV) of frames `rows`, without the outliers of a robust fit.

    `counts` (n_frames, 119) atoms of each number. A frame that is wildly wrong does not pull the energies of its
    elements along, unless hardly another frame holds them. None without an energy.
    """
    if len(rows) == 0:
        return None
    present = np.flatnonzero(counts[rows].any(axis=0))
    some = counts[rows][:, present].astype(np.float64)
    n = some.sum(axis=1)
    fractions, target = some / n[:, None], energies[rows] / n
    _, size, directions = np.linalg.svd(fractions, full_matrices=False)
    directions = directions[size > 1e-6 * size[0]]
    known = fractions @ directions.T  # (n_rows, rank), of full rank
    left = target - known @ _least_absolute(known, target)
    left = left - np.median(left)
    width = float(1.4826 * np.median(np.abs(left)))
    far = (np.abs(left) > max(FAR * width, LEAST)) & (len(rows) >= len(directions) + FEW)
    coefficients = np.linalg.lstsq(known[~far], target[~far], rcond=None)[0]
    full, axes = np.zeros(counts.shape[1]), np.zeros((len(directions), counts.shape[1]))
    full[present], axes[:, present] = directions.T @ coefficients, directions
    return Fit(full, axes, rows, target - known @ coefficients, width, far)


def _least_absolute(known: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The coefficients with the least sum of absolute deviations, by reweighting."""
    coefficients = np.linalg.lstsq(known, target, rcond=None)[0]
    for _ in range(ROUNDS if len(target) >= known.shape[1] + FEW else 0):
        left = np.abs(target - known @ coefficients)
        weights = 1 / np.sqrt(np.maximum(left, 1e-3 + 0.1 * np.median(left)))
        before, coefficients = coefficients, np.linalg.lstsq(known * weights[:, None], target * weights, rcond=None)[0]
        if np.abs(coefficients - before).max() < 1e-6 * max(1.0, np.abs(coefficients).max()):
            break
    return coefficients


def shift(one: Fit, counts: np.ndarray, energies: np.ndarray, rows: np.ndarray) -> float | None:
    """Median of energy per atom minus what `one` says, over the frames whose composition it determines (eV)."""
    some = counts[rows].astype(np.float64)
    n = some.sum(axis=1)
    fractions = some / n[:, None]
    inside = np.abs(fractions - fractions @ one.directions.T @ one.directions).max(axis=1, initial=0) < 1e-6
    if not inside.any():
        return None
    return float(np.median((energies[rows] / n - fractions @ one.energies)[inside]))
