"""Numbers of symmetry operations of crystals, to notice changes by a relaxation. On the host."""

import itertools

import numpy as np
from ase.geometry import minkowski_reduce

from lamjax.system import System, check_single, real

MOST_ATOMS = 200  # of a cell whose operations are counted


def n_operations(system: System, tolerance: float = 0.05) -> int | None:
    """The order of a crystal's point group: rotations that, with a translation, map its atoms within `tolerance` (Å).

    Those of the lattice of the cell as it is: 48 for the primitive cell of a cubic metal. None for cells of more than
    `MOST_ATOMS` atoms, and for what is no crystal.
    """
    check_single(system, "n_operations")
    kept = np.asarray(real(system))
    if not np.all(np.asarray(system.pbc)) or not 0 < kept.sum() <= MOST_ATOMS:
        return None
    cell, _ = minkowski_reduce(np.asarray(system.cell, np.float64))
    scaled = np.asarray(system.positions, np.float64)[kept] @ np.linalg.inv(cell)
    numbers = np.asarray(system.numbers)[kept]
    return sum(_maps(rotation, cell, scaled, numbers, tolerance) for rotation in _rotations(cell, tolerance))


def _rotations(cell, tolerance: float) -> list[np.ndarray]:
    """Matrices of whole numbers that leave lengths and angles of a reduced cell as they are."""
    rows = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    vectors, lengths = rows @ cell, np.linalg.norm(cell, axis=1)
    fits = [np.flatnonzero(np.abs(np.linalg.norm(vectors, axis=1) - length) < tolerance) for length in lengths]
    metric, rotations = cell @ cell.T, []
    slack = 2 * tolerance * lengths.max()
    for chosen in itertools.product(*fits):
        moved = vectors[list(chosen)]
        if np.abs(moved @ moved.T - metric).max() < slack and abs(round(np.linalg.det(rows[list(chosen)]))) == 1:
            rotations.append(rows[list(chosen)])
    return rotations


def _maps(rotation, cell, scaled, numbers, tolerance: float) -> bool:
    """Whether a rotation of the lattice, followed by a translation, maps the atoms onto themselves."""
    turned = scaled @ rotation  # new lattice vectors are rotation @ cell: an atom keeps its coordinates in them
    kinds, sizes = np.unique(numbers, return_counts=True)
    same = np.flatnonzero(numbers == kinds[np.argmin(sizes)])
    alike = numbers[:, None] == numbers[None]
    for target in same:
        difference = (turned + scaled[target] - turned[same[0]])[:, None] - scaled[None]
        difference -= np.round(difference)
        distance = np.where(alike, np.linalg.norm(difference @ cell, axis=-1), np.inf)
        if distance.min(axis=1).max() < tolerance:
            return True
    return False
