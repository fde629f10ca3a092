"""Neighbour lists on the host (vesin): how wide the arrays must be, and lists for training data."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import vesin
from jax.typing import DTypeLike
from jaxtyping import Array

from lamjax.lattice import complete_cell, image_offsets, padded_images
from lamjax.neighbors.types import MadeFor, Neighbors, Shell, slots
from lamjax.system import System, check_single

FEW = 2000  # atoms that one thread searches


def count(system: System, shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """Largest number of neighbours of an atom within each shell, before any `sel`."""
    real, columns = _search(system, shells[0].cutoff, "id")
    i, r = (real[columns[0].astype(int)], columns[1]) if columns else (np.zeros(0, int), np.zeros(0))
    return _largest_counts(i, r, shells)


def _largest_counts(i: np.ndarray, r: np.ndarray, shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """The largest number of pairs of one centre i whose distance r is within each cutoff."""
    return tuple(int(np.bincount(i[r <= s.cutoff]).max(initial=0)) for s in shells)


def plan_capacities(n_neighbors: tuple[int, ...], shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """Slots for each shell: what was found, at most `sel`, rounded up; inner shells never wider than outer ones."""
    return slots(f if s.sel is None else min(f, s.sel) for f, s in zip(n_neighbors, shells, strict=True))


def allocate(
    system: System, shells: tuple[Shell, ...], capacities: tuple[int, ...] | None = None, dtype: DTypeLike | None = None
) -> Neighbors:
    """The neighbours of one structure, in arrays just wide enough (or of the given `capacities`).

    Raises ValueError with the needed number if a given capacity is too small. Warns where a model's own `sel` cuts.
    """
    system = jax.tree.map(np.asarray, system)
    i, j, images, r = pairs(system, shells[0].cutoff)
    check_distances(i, j, r)
    n_neighbors = _largest_counts(i, r, shells)
    needed = plan_capacities(n_neighbors, shells)
    capacities = needed if capacities is None else tuple(capacities)
    for shell, f, width in zip(shells, n_neighbors, capacities, strict=True):
        least = f if shell.sel is None else min(f, shell.sel)
        if least > width:
            raise ValueError(
                f"An atom has {f} neighbours within {shell.cutoff:g} Å, capacity is {width}. "
                f"Raise `capacity` to at least {least}."
            )
        if shell.sel is not None and f > shell.sel:
            warnings.warn(
                f"An atom has {f} neighbours within {shell.cutoff:g} Å; the model keeps the nearest {shell.sel} "
                "(its `sel`), as DeePMD-kit does.",
                stacklevel=2,
            )
    return jax.tree.map(jnp.asarray, _pack(system, shells, capacities, (i, j, images, r), n_neighbors))


def host_neighbors(
    system: System, shells: tuple[Shell, ...], capacities: tuple[int, ...], n_offsets: int = 0
) -> Neighbors:
    """As `allocate`, with numpy arrays, for data that is stacked into batches; overflow is a flag, not an error.

    `n_offsets` pads the list of images to a common length.
    """
    system = jax.tree.map(np.asarray, system)
    i, j, images, r = pairs(system, shells[0].cutoff)
    return _pack(system, shells, capacities, (i, j, images, r), _largest_counts(i, r, shells), n_offsets)


def pairs(system: System, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs within the cutoff, sorted by centre and distance: i, j, images S, distance (Å). Padding is left out."""
    real, columns = _search(system, cutoff, "ijSd")
    if not columns:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0)
    i, j, images, r = columns
    order = np.lexsort((r, i))
    return real[i[order].astype(int)], real[j[order].astype(int)], images[order].astype(int), r[order]


def _search(system: System, cutoff: float, quantities: str) -> tuple[np.ndarray, Any]:
    """The real atoms, and what vesin finds among them, unsorted; nothing if there are none."""
    check_single(system, "The neighbour search")
    real = np.flatnonzero(np.asarray(system.numbers) > 0)
    if len(real) == 0:
        return real, ()
    pbc = np.asarray(system.pbc)
    cell = complete_cell(system.cell, pbc)
    positions = _without_gaps(np.asarray(system.positions, np.float64)[real], cell[~pbc], cutoff)
    threads = 1 if len(real) < FEW else 0  # more would wait for each other longer than they work
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=threads)
    return real, finder.compute(points=positions, box=cell, periodic=list(map(bool, pbc)), quantities=quantities)


def _without_gaps(positions: Array, open_directions: Any, cutoff: float) -> np.ndarray:
    """Positions with every gap along the open directions (unit vectors) made at most 2 Å wider than the cutoff.

    No neighbour within the cutoff is on the other side of one. The search divides the whole extent into boxes of the
    cutoff: an atom that has left a slab by thousands of Å would make millions of them.
    """
    for direction in open_directions:
        along = positions @ direction
        order = np.argsort(along)
        excess = np.maximum(np.diff(along[order]) - (cutoff + 2), 0)
        if excess.any():
            shift = np.zeros(len(along))
            shift[order[1:]] = np.cumsum(excess)
            shift -= shift[order[len(order) // 2]]  # most atoms stay where they are, with all their digits
            positions = positions - shift[:, None] * direction
    return positions


def _pack(
    system: System,
    shells: Sequence[Shell],
    capacities: Sequence[int],
    found_pairs: Any,
    n_neighbors: Any,
    n_offsets: int = 0,
) -> Neighbors:
    i, j, images, r = found_pairs
    n, capacity = system.n_atoms, capacities[0]
    starts = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n))])[:-1]
    slot = np.arange(len(i)) - starts[i]
    inside = slot < capacity
    i, j, images, r, slot = i[inside], j[inside], images[inside], r[inside], slot[inside]
    distance = np.full((n, capacity), np.inf)
    distance[i, slot] = r
    masks = [
        (distance[:, :width] <= s.cutoff) & (np.arange(width) < (width if s.sel is None else s.sel))
        for s, width in zip(shells, capacities, strict=True)
    ]
    indices = np.broadcast_to(np.arange(n, dtype=np.int32)[:, None], (n, capacity)).copy()
    shifts = np.zeros((n, capacity, 3), np.int32)
    indices[i, slot], shifts[i, slot] = j, images
    kept = [f if s.sel is None else min(f, s.sel) for f, s in zip(n_neighbors, shells, strict=True)]
    offsets = image_offsets(system.cell, system.pbc, shells[0].cutoff)
    return Neighbors(
        indices=np.where(masks[0], indices, np.arange(n, dtype=np.int32)[:, None]),
        images=np.where(masks[0][..., None], shifts, 0),
        mask=masks[0],
        inner=tuple(masks[1:]),
        offsets=padded_images(offsets, n_offsets),
        largest_counts=np.asarray(n_neighbors, np.int32),
        overflow=np.asarray(any(k > c for k, c in zip(kept, capacities, strict=True))),
        truncated=np.asarray(any(k < f for k, f in zip(kept, n_neighbors, strict=True))),
        made_for=MadeFor(tuple(shells)),
    )


def check_distances(i: Array, j: Array, r: Array, closest: float = 1e-3) -> None:
    if len(r) and r.min() < closest:
        k = int(np.argmin(r))
        raise ValueError(f"Atoms {i[k]} and {j[k]} are {r[k]:.2g} Å apart: two atoms on one place. Remove one of them.")
