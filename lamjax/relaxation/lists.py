"""Candidates for neighbours in a batch of structures of many sizes: only lists that need it are searched anew."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lamjax import pytree
from lamjax import system as systems
from lamjax.lattice import FAR, reach, wrap_shift
from lamjax.neighbors import Neighbors, Shell
from lamjax.neighbors.search import assemble, counted, nearest_candidates, verdict
from lamjax.neighbors.verlet import ROUNDING, Verlet, closest, is_stale
from lamjax.system import System

BLOCK = 32  # atoms that are searched at once, at least


class Lists(NamedTuple):
    """The lists of a batch, and the images of atoms that a search looks at."""

    verlet: Verlet  # without images
    atoms: Int[Array, "n_slots n_candidates"]
    images: Int[Array, "n_slots n_candidates 3"]


def candidates(n_atoms: int, offsets: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Every atom in every image, (width,) and (width, 3); images that are FAR away where there are fewer. Numpy."""
    n = min(len(offsets), width // n_atoms)  # a list that lacks some has a smaller radius
    atoms, images = np.zeros(width, np.int32), np.full((width, 3), FAR, np.int32)
    atoms[: n * n_atoms] = np.tile(np.arange(n_atoms, dtype=np.int32), n)
    images[: n * n_atoms] = np.repeat(offsets[:n], n_atoms, axis=0)
    return atoms, images


def refresh(lists: Lists, batch: System, shells: tuple[Shell, ...], skin: float) -> Lists:
    """The lists, those of structures with a stale one made anew."""
    batch = jax.lax.stop_gradient(batch)
    stale = jax.vmap(lambda v, s: is_stale(v, s, shells))(lists.verlet, batch)
    new = lambda lists: _search(lists, batch, stale, shells, skin)  # noqa: E731
    return jax.lax.cond(jnp.any(stale), new, lambda lists: lists, lists)


def _search(
    lists: Lists, batch: System, stale: Bool[Array, " n_batch"], shells: tuple[Shell, ...], skin: float
) -> Lists:
    shift, finite = jax.vmap(wrap_shift)(batch.positions, batch.cell, batch.pbc)
    within = jax.vmap(reach)(batch.cell, batch.pbc, lists.images)
    radius = jnp.minimum(jnp.asarray(shells[0].cutoff + skin, within.dtype), within)
    home = batch._replace(positions=batch.positions + shift.astype(batch.cell.dtype) @ batch.cell)
    old, (n_slots, n_atoms) = lists.verlet, batch.numbers.shape
    block = max(BLOCK, n_slots * n_atoms // 64)
    wanted = (systems.real(batch) & stale[:, None]).ravel()
    order = jnp.where(jnp.sort(~wanted), n_slots * n_atoms, jnp.argsort(~wanted))  # beyond the last atom: none
    order = jnp.pad(order, (0, block), constant_values=n_slots * n_atoms)

    def some(k, rows):
        chosen = jax.lax.dynamic_slice_in_dim(order, k * block, block)
        structure, atom = chosen // n_atoms, chosen % n_atoms
        made = _around(lists, home, shift, (jnp.minimum(structure, n_slots - 1), atom), shells, radius)
        return jax.tree.map(lambda old, new: old.at[structure, atom].set(new, mode="drop"), rows, made)

    dropped = jnp.full(batch.numbers.shape, jnp.inf, radius.dtype)
    number = jnp.zeros((*batch.numbers.shape, len(shells)), jnp.int32)
    n_blocks = (jnp.sum(wanted) + block - 1) // block
    rows = old.indices, old.images, old.mask, dropped, number
    indices, images, mask, dropped, number = jax.lax.fori_loop(0, n_blocks, some, rows)
    new = old._replace(
        radius=jnp.minimum(radius, jnp.min(dropped, axis=1)),
        positions=batch.positions,
        cell=batch.cell,
        largest_counts=jnp.max(number, axis=1),
        usable=finite & (within >= shells[0].cutoff),
    )
    return lists._replace(verlet=pytree.where(stale, new, old)._replace(indices=indices, images=images, mask=mask))


def _around(lists: Lists, home: System, shift, rows: tuple, shells: tuple[Shell, ...], radius):
    """Indices, images and mask of some atoms' lists, the distance to the nearest without a slot, numbers in shells."""
    structure, atom = rows
    j, images = lists.atoms[structure], lists.images[structure]
    cell, numbers = home.cell[structure], home.numbers[structure]
    other = jnp.take_along_axis(home.positions[structure], j[..., None], axis=1)
    d = other + systems.transform(images.astype(cell.dtype), cell) - home.positions[structure, atom][:, None, :]
    own = (j == atom[:, None]) & jnp.all(images == 0, axis=-1)
    absent = jnp.any((jnp.abs(images) >= FAR) | ((images != 0) & ~home.pbc[structure][:, None, :]), axis=-1)
    usable = (jnp.take_along_axis(numbers, j, axis=1) > 0) & ~own & ~absent
    squared = jnp.where(usable, jnp.sum(d * d, axis=-1), jnp.inf)
    kept, slot, dropped = closest(squared, lists.verlet.indices.shape[-1])
    j = jnp.take_along_axis(j, slot, axis=1)
    unwrapped = jnp.take_along_axis(shift[structure], j[..., None], axis=1) - shift[structure, atom][:, None, :]
    images = jnp.take_along_axis(images, slot[..., None], axis=1) + unwrapped
    mask = kept <= (radius[structure, None] * (1 + ROUNDING)) ** 2
    return j, images, mask, dropped.astype(radius.dtype), counted(squared, shells)


class Places(NamedTuple):
    """One list of atoms out of a batch: where each of its atoms lies, and where each structure begins in it."""

    structure: Int[Array, " n_flat"]
    atom: Int[Array, " n_flat"]
    real: Bool[Array, " n_flat"]
    start: Int[Array, " n_slots"]  # outside of 0 to n_flat for structures that are not in this list


def laid(sizes: Int[Array, " n_slots"], n_flat: int) -> Int[Array, " n_slots"]:
    """The first rows of structures in lists of `n_flat` atoms, counted over all lists; -1 for those without atoms.

    Each is in the first list that has room for it, behind those before it.
    """

    def put(filled, size):
        k = jnp.argmax(filled + size <= n_flat).astype(sizes.dtype)
        start = jnp.where(size > 0, k * n_flat + filled[k], -1)
        return filled.at[k].add(size), start

    return jax.lax.scan(put, jnp.zeros_like(sizes), sizes)[1]


def places(starts: Int[Array, " n_slots"], sizes: Int[Array, " n_slots"], k, n_flat: int) -> Places:
    """The k-th list of `laid`."""
    flat = k * n_flat + jnp.arange(n_flat)
    order = jnp.argsort(starts)
    structure = order[jnp.searchsorted(starts[order], flat, side="right") - 1]
    atom = flat - starts[structure]
    real = atom < sizes[structure]
    return Places(structure, jnp.where(real, atom, 0), real, starts - k * n_flat)


def narrow(
    lists: Verlet, together: System, where: Places, shells: tuple[Shell, ...], capacities: tuple[int, ...]
) -> tuple[Neighbors, Int[Array, "n_slots n_shells"]]:
    """As `verlet.narrow`, for a list of atoms; and the largest number of neighbours of an atom of every structure."""
    together = jax.lax.stop_gradient(together)
    at, x = (where.structure, where.atom), together.positions
    own = jnp.arange(len(x))[:, None]
    mask = lists.mask[at] & where.real[:, None]
    indices = jnp.where(mask, lists.indices[at] + where.start[where.structure][:, None], own)
    images = lists.images[at]
    shift = systems.transform(images.astype(x.dtype), together.cell[where.structure])
    d = x[indices] + shift - x[:, None, :]
    squared = jnp.where(mask, jnp.sum(d * d, axis=-1), jnp.inf)
    n_neighbors = _largest(counted(squared, shells), where)
    candidates = nearest_candidates(squared, indices, images, capacities[0])
    none, complete = jnp.zeros((0, 3), jnp.int32), jnp.ones((), bool)
    made = assemble(candidates, none, shells, capacities, jnp.max(n_neighbors, axis=0), complete)
    return made, n_neighbors


def flags(
    lists: Verlet, n_neighbors: Int[Array, "n_batch n_shells"], shells: tuple[Shell, ...], capacities: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Overflow, truncated and the numbers of neighbours of every structure."""
    # a list that was cut within the cutoff has just been made, and its numbers are those of now
    n_neighbors = jnp.where((lists.radius >= shells[0].cutoff)[:, None], n_neighbors, lists.largest_counts)
    missing, truncated = verdict(n_neighbors, shells, capacities)
    return missing | ~lists.usable, truncated, n_neighbors


def _largest(numbers: Int[Array, "n_flat n"], where: Places) -> Int[Array, "n_slots n"]:
    """The largest numbers of an atom of every structure; 0 where there are no atoms."""
    numbers = jnp.where(where.real[:, None], numbers, 0)
    largest = jax.ops.segment_max(numbers, where.structure, len(where.start), indices_are_sorted=True)
    return jnp.maximum(largest, 0)
