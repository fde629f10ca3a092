"""Which atom of a relaxed structure is which atom of its start, found from where they are."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from lamjax.lattice import complete_cell, shortest
from lamjax.system import System

ROUNDS = 3  # of assigning atoms and removing their common translation


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
        d = shortest(places[order] - shift - start.positions, start.cell, start.pbc)
        shift = shift + _middle(d)
    return _measured(start, places, order)


def in_cell_of(start: System, target: System) -> Float[np.ndarray, "n_atoms 3"]:
    """Positions of the target (Å) after its cell was strained to that of the start; fractional coordinates stay."""
    fractional = target.positions @ np.linalg.inv(complete_cell(target.cell, target.pbc))
    return target.positions + fractional @ np.where(start.pbc[:, None], start.cell - target.cell, 0)


def displacements(start: System, target: System) -> Float[np.ndarray, "n_atoms 3"]:
    """The shortest vectors (Å) from the atoms of the start to those of the target, in the cell of the start."""
    return shortest(in_cell_of(start, target) - start.positions, start.cell, start.pbc)


def _assign(start: System, numbers: np.ndarray, places: Any) -> Int[np.ndarray, " n_atoms"]:
    from scipy.optimize import linear_sum_assignment

    order = np.empty(start.n_atoms, int)
    for element in np.unique(start.numbers):
        own, other = np.flatnonzero(start.numbers == element), np.flatnonzero(numbers == element)
        d = shortest(places[None, other] - start.positions[own, None], start.cell, start.pbc)
        rows, columns = linear_sum_assignment(np.sum(d * d, axis=-1))
        order[own[rows]] = other[columns]
    return order


def _measured(start: System, places: Any, order: Any) -> Match:
    d = shortest(places[order] - start.positions, start.cell, start.pbc)
    squared = np.sum(shortest(d - _middle(d), start.cell, start.pbc) ** 2, axis=1)
    return Match(order, float(np.sqrt(squared.mean())), float(np.sqrt(squared.max())))


def _middle(d: Array) -> Float[np.ndarray, " 3"]:
    """The median displacement, so that few atoms which go far do not count; the mean of two would be of two images."""
    return np.quantile(d, 0.5, axis=0, method="lower")
