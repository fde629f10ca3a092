"""Which atom of a relaxed structure is which atom of its start, found from where they are."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from ase.geometry import minkowski_reduce
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment

from lamjax.system import System, complete_cell

ROUNDS = 3  # of assigning and of removing the common translation of what is assigned


class Match(NamedTuple):
    """Atom `order[i]` of the target is atom i of the start; displacements without their common translation."""

    order: Int[np.ndarray, " n_atoms"]
    rms: float  # Å
    largest: float  # Å


def given(start: System, target: System) -> Match:
    """The displacements if the atoms are in the order in which they were given."""
    order = np.arange(start.n_atoms)
    return _measured(start, in_cell_of(start, target), order)


def assigned(start: System, target: System) -> Match:
    """The order of the target's atoms, within each element, that makes the RMS displacement smallest.

    Displacements are between nearest images in the cell of the start. A common translation is removed after a first
    assignment, so that one of about half the distance of two atoms or more is not found. Both must hold the same
    numbers of atoms of each element.
    """
    places = in_cell_of(start, target)
    shift = np.zeros(3)
    for _ in range(ROUNDS):
        order = _assign(start, target.numbers, places - shift)
        d = nearest(places[order] - shift - start.positions, start.cell, start.pbc)
        shift = shift + _middle(d)
    return _measured(start, places, order)


def in_cell_of(start: System, target: System) -> Float[np.ndarray, "n_atoms 3"]:
    """Positions of the target (Å) after its cell was strained to that of the start; fractional coordinates stay."""
    fractional = target.positions @ np.linalg.inv(complete_cell(target.cell, target.pbc))
    return target.positions + fractional @ np.where(start.pbc[:, None], start.cell - target.cell, 0)


def nearest(d: Float[np.ndarray, "*n 3"], cell: np.ndarray, pbc: np.ndarray) -> Float[np.ndarray, "*n 3"]:
    """The shortest periodic image of every vector d (Å), in any cell."""
    if not np.any(pbc):
        return d
    reduced, _ = minkowski_reduce(complete_cell(cell, pbc), pbc)
    d = d - np.where(pbc, np.round(d @ np.linalg.inv(reduced)), 0) @ reduced
    images = np.array(list(product(*((0, -1, 1) if periodic else (0,) for periodic in pbc)))) @ reduced
    least, chosen = np.zeros(d.shape[:-1]), np.zeros(d.shape[:-1], int)  # of |d + image|² - |d|², which is 0 at home
    for k, image in enumerate(images):
        change = image @ image + 2 * d @ image
        chosen = np.where(change < least, k, chosen)
        least = np.minimum(change, least)
    return d + images[chosen]


def _assign(start: System, numbers: np.ndarray, places: Any) -> Int[np.ndarray, " n_atoms"]:
    order = np.empty(start.n_atoms, int)
    for element in np.unique(start.numbers):
        mine, theirs = np.flatnonzero(start.numbers == element), np.flatnonzero(numbers == element)
        d = nearest(places[None, theirs] - start.positions[mine, None], start.cell, start.pbc)
        rows, columns = linear_sum_assignment(np.sum(d * d, axis=-1))
        order[mine[rows]] = theirs[columns]
    return order


def _measured(start: System, places: Any, order: Any) -> Match:
    d = nearest(places[order] - start.positions, start.cell, start.pbc)
    squared = np.sum(nearest(d - _middle(d), start.cell, start.pbc) ** 2, axis=1)
    return Match(order, float(np.sqrt(squared.mean())), float(np.sqrt(squared.max())))


def _middle(d: Array) -> Float[np.ndarray, " 3"]:
    """The median displacement, so that few atoms which go far do not count; the mean of two would be of two images."""
    return np.quantile(d, 0.5, axis=0, method="lower")
