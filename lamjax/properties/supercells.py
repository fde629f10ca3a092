"""A crystal repeated along its lattice vectors: what phonons need of it that does not change as its atoms move."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.geometry import minkowski_reduce
from jaxtyping import Array, Float, Int

from lamjax import neighbors as neighbor_lists
from lamjax.lattice import face_distances
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, check_elements
from lamjax.properties.minimum import check_crystal
from lamjax.system import System, as_system, check_single, real

LENGTH = 10.0  # Å, between opposite faces of a supercell, at least, where nothing else is asked for
MOST_ATOMS = 20_000  # of a supercell: its force constants fill gigabytes
NEAREST = 1e-4  # Å: images of an atom whose distances differ by less are equally near


class Supercell(NamedTuple):
    """Atoms of a supercell: atom k of the cell in all its copies stands before atom k + 1, as phonopy has it."""

    repeats: Int[Array, "3"]
    atom: Int[Array, " n_super"]  # of the cell
    cells: Int[Array, "n_super 3"]  # lattice vectors of the cell from there
    neighbors: Neighbors
    images: Int[Array, "n_atoms n_super n_images 3"]  # nearest copies of a pair: lattice vectors of the cell between
    weights: Float[Array, "n_atoms n_super n_images"]  # 1/(number of equally near copies), or 0


def supercell(
    potential: Potential,
    system: System,
    repeats: Sequence[int] | None = None,
    *,
    length: float = LENGTH,
    capacities: tuple[int, ...] | None = None,
) -> Supercell:
    """The supercell of `repeats` (default: opposite faces are at least `length` Å apart). On the host.

    Its neighbours are found with all images, so that force constants are those of the supercell exactly, however small
    it is; frequencies are exact at the wave vectors that fit into it (see `commensurate`), and interpolated elsewhere:
    the less, the farther its faces are apart. Raises ValueError for what is no crystal.
    """
    system = as_system(system)
    check_single(system, "A supercell")
    check_crystal(system, "A supercell")
    check_elements(potential, system)
    if not np.all(np.asarray(real(system))):
        raise ValueError("A supercell is made of a structure without padding: take the first atoms, with number > 0.")
    cells = tiled(system, _checked_size(system, _repeats(system, repeats, length)))
    placed = System(
        positions=np.asarray(system.positions, np.float64)[cells.atom]
        + cells.cells @ np.asarray(system.cell, np.float64),
        numbers=np.asarray(system.numbers)[cells.atom],
        cell=cells.repeats[:, None] * np.asarray(system.cell, np.float64),
        pbc=np.ones(3, bool),
    )
    return cells._replace(neighbors=neighbor_lists.allocate(placed, potential.shells, capacities))


def tiled(system: System, repeats: Int[np.ndarray, "3"]) -> Supercell:
    """The supercell without neighbours: which atoms it has, and which copies of a pair are nearest. On the host."""
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in repeats[::-1]), indexing="ij"), -1).reshape(-1, 3)[:, ::-1]
    n_atoms, lattice = system.n_atoms, np.asarray(system.cell, np.float64)
    atom, cells = np.repeat(np.arange(n_atoms), len(cells)), np.tile(cells, (n_atoms, 1))
    blank = Supercell(np.asarray(repeats), atom.astype(np.int32), cells.astype(np.int32), None, None, None)
    positions = np.asarray(system.positions, np.float64)[atom] + cells @ lattice
    images, weights = _nearest(positions, blank.repeats[:, None] * lattice, blank)
    return blank._replace(images=images, weights=weights)


def repeated(system: System, cells: Supercell) -> System:
    """The structure of the supercell, a function of that of the cell."""
    shift = cells.cells.astype(system.positions.dtype) @ system.cell
    return system._replace(
        positions=system.positions[cells.atom] + shift,
        numbers=system.numbers[cells.atom],
        cell=system.cell * cells.repeats.astype(system.cell.dtype)[:, None],
        aparam=None if system.aparam is None else system.aparam[cells.atom],
    )


def home(cells: Supercell) -> Int[Array, " n_atoms"]:
    """The atoms of the supercell that are those of the cell itself."""
    n_cells = len(cells.atom) // cells.images.shape[0]
    return np.arange(cells.images.shape[0]) * n_cells


def commensurate(q, cells: Supercell):
    """True for wave vectors (in reciprocal lattice vectors of the cell) whose wave fits into the supercell."""
    turns = np.asarray(q) * np.asarray(cells.repeats)
    return np.all(np.abs(turns - np.round(turns)) < 1e-6, axis=-1)


def _repeats(system: System, repeats, length: float) -> Int[np.ndarray, "3"]:
    if repeats is None:
        faces = face_distances(np.asarray(system.cell), np.ones(3, bool))
        return np.maximum(1, np.ceil(length / faces - 1e-6)).astype(int)
    numbers = np.asarray(repeats)
    if numbers.shape != (3,) or not np.all(numbers == np.round(numbers)) or np.any(numbers < 1):
        raise ValueError(f"repeats is {repeats!r}; expected three whole numbers of at least 1, such as (2, 2, 2).")
    return numbers.astype(int)


def _checked_size(system: System, repeats: Int[np.ndarray, "3"]) -> Int[np.ndarray, "3"]:
    """The repeats; ValueError for a supercell of more atoms than force constants can be computed of."""
    n_atoms = system.n_atoms * int(np.prod(repeats, dtype=object))
    if n_atoms > MOST_ATOMS:
        raise ValueError(
            f"A supercell of {'x'.join(map(str, repeats))} cells has {n_atoms} atoms, more than {MOST_ATOMS}. Ask for "
            "a smaller distance between its faces, or for fewer repeats."
        )
    return repeats


def _nearest(positions, lattice, cells: Supercell) -> tuple[np.ndarray, np.ndarray]:
    """For every atom of the cell and every one of the supercell: the nearest copies of the pair, and their weights.

    As phonopy does it: a force constant is shared by copies on the boundary of the Wigner-Seitz cell. Copies are those
    of the reduced lattice: of a skewed one the nearest may lie many lattice vectors away.
    """
    n_cells = int(np.prod(cells.repeats))
    rows = np.arange(0, len(positions), n_cells)
    reduced, change = minkowski_reduce(lattice)
    reach = np.array(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij")).reshape(3, -1).T @ change
    base = np.round((positions[None] - positions[rows, None]) @ np.linalg.inv(reduced)) @ change  # near the nearest
    images, weights, most = [], [], 1
    for k, row in enumerate(rows):
        jumps = reach[None] - base[k][:, None].astype(int)
        distance = np.linalg.norm(positions[:, None] + jumps @ lattice - positions[row], axis=-1)
        near = distance < distance.min(axis=1, keepdims=True) + NEAREST
        order = np.argsort(~near, axis=1, kind="stable")
        most = max(most, int(near.sum(axis=1).max()))
        nearest = np.take_along_axis(jumps, order[..., None], axis=1)[:, :27]
        images.append(nearest * cells.repeats + (cells.cells - cells.cells[row])[:, None])
        weights.append((np.take_along_axis(near, order, axis=1) / near.sum(axis=1, keepdims=True))[:, :27])
    return np.stack(images)[:, :, :most].astype(np.int32), np.stack(weights)[:, :, :most]
