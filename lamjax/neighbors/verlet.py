"""A list with a skin: searched rarely, and narrowed down to the neighbours within the cutoff at every step."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lamjax import pytree
from lamjax.lattice import basis, reach, wrap_shift
from lamjax.neighbors.search import assemble, nearest, nearest_candidates, squared_distances, within_shells
from lamjax.neighbors.types import Neighbors, Shell
from lamjax.system import System

SKIN = 0.6  # Å
BLOCK = 8  # structures that are searched at once, at least
ROUNDING = 1e-6  # of distances in float32, generously


class Verlet(NamedTuple):
    """All atoms that may become neighbours before the next search, for one structure.

    It is complete within `radius` at the time of the search: the cutoff and the skin, or less where the list is too
    narrow or the images too few; then a search comes sooner, and nothing is lost.
    """

    indices: Int[Array, "*batch n_atoms width"]
    images: Int[Array, "*batch n_atoms width 3"]
    mask: Bool[Array, "*batch n_atoms width"]
    offsets: Int[Array, "*batch n_offsets 3"]  # the images that a search looks at
    radius: Float[Array, "*batch"]  # Å; -inf before the first search
    positions: Float[Array, "*batch n_atoms 3"]  # Å, where it was made
    cell: Float[Array, "*batch 3 3"]
    largest_counts: Int[Array, "*batch n_shells"]  # then, without a limit of slots
    usable: Bool[Array, "*batch"]  # positions were finite and the images enough for the cutoff itself


def empty(system: System, neighbors: Neighbors, shells: tuple[Shell, ...], skin: float) -> Verlet:
    """A list that wants to be searched, with slots for a list like `neighbors` and its skin."""
    n, n_offsets = system.n_atoms, neighbors.offsets.shape[-2]
    width = min(slots(neighbors.capacities[0], shells[0].cutoff, skin), n * n_offsets)
    return blank(system, width, neighbors.offsets, shells)


def blank(system: System, width: int, offsets: Array, shells: tuple[Shell, ...]) -> Verlet:
    """An empty list of that width, stale from the start."""
    n, dtype = system.n_atoms, system.positions.dtype
    return Verlet(
        indices=jnp.zeros((n, width), jnp.int32),
        images=jnp.zeros((n, width, 3), jnp.int32),
        mask=jnp.zeros((n, width), bool),
        offsets=offsets,
        radius=jnp.full((), -jnp.inf, dtype),
        positions=jnp.zeros((n, 3), dtype),
        cell=jnp.zeros((3, 3), dtype),
        largest_counts=jnp.zeros(len(shells), jnp.int32),
        usable=jnp.ones((), bool),
    )


def slots(capacity: int, cutoff: float, skin: float) -> int:
    """The width of a list with a skin for atoms that have `capacity` neighbours within the cutoff."""
    return math.ceil(capacity * (1 + skin / cutoff) ** 3) + (4 if skin else 0)


def from_pairs(
    system: System, found_pairs: Any, shells: tuple[Shell, ...], offsets: Array, width: int, radius: float
) -> Verlet:
    """As `search`, from all pairs (i, j, images, r) within `radius`, sorted by centre and distance. With numpy."""
    i, j, images, r = found_pairs
    n = system.n_atoms
    per_atom = np.bincount(i, minlength=n)
    slot = np.arange(len(i)) - (np.cumsum(per_atom) - per_atom)[i]
    inside = slot < width
    indices, shifts, mask = (
        np.zeros((n, width), np.int32),
        np.zeros((n, width, 3), np.int32),
        np.zeros((n, width), bool),
    )
    place = i[inside], slot[inside]
    indices[place], shifts[place], mask[place] = j[inside], images[inside], True
    n_neighbors = [np.bincount(i[r <= s.cutoff], minlength=n).max(initial=0) for s in shells]
    dtype = system.positions.dtype
    return Verlet(
        indices=indices,
        images=shifts,
        mask=mask,
        offsets=np.asarray(offsets, np.int32),
        radius=np.asarray(min(radius, r[~inside].min(initial=np.inf)), dtype),
        positions=system.positions,
        cell=system.cell,
        largest_counts=np.asarray(n_neighbors, np.int32),
        usable=np.ones((), bool),
    )


def is_stale(verlet: Verlet, system: System, shells: tuple[Shell, ...]) -> Bool[Array, ""]:
    """True if an atom beyond the radius may have come within the cutoff since the search.

    With x = x₀ F + δ, F the deformation of the cell, no distance has shrunk below |r₀| σ_min(F) - 2 max|δ|.
    """
    system = jax.lax.stop_gradient(system)
    deformation = jnp.linalg.inv(basis(verlet.cell, system.pbc)) @ basis(system.cell, system.pbc)
    deformation = jnp.where(verlet.radius >= 0, deformation, jnp.eye(3, dtype=system.cell.dtype))
    moved = jnp.where((system.numbers > 0)[:, None], system.positions - verlet.positions @ deformation, 0)
    farthest = jnp.sqrt(jnp.max(jnp.sum(moved * moved, axis=-1), initial=0))
    shrunk = 1 - jnp.linalg.norm(deformation - jnp.eye(3, dtype=deformation.dtype))  # at most the least singular value
    return ~(verlet.radius * shrunk - 2 * farthest >= shells[0].cutoff)  # a NaN is stale


def search(verlet: Verlet, system: System, shells: tuple[Shell, ...], skin: float) -> Verlet:
    """A new list in the same shapes, searched over all images."""
    system = jax.lax.stop_gradient(system)
    cutoff, width, offsets = shells[0].cutoff, verlet.indices.shape[-1], verlet.offsets
    shift, finite = wrap_shift(system.positions, system.cell, system.pbc)
    squared = squared_distances(system, shift, offsets)
    within = reach(system.cell, system.pbc, offsets)
    radius = jnp.minimum(jnp.asarray(cutoff + skin, squared.dtype), within)
    kept, slot, dropped = closest(squared, width)
    j, o = slot // offsets.shape[0], slot % offsets.shape[0]
    return verlet._replace(
        indices=j.astype(jnp.int32),
        images=(offsets[o] + shift[j] - shift[:, None, :]).astype(jnp.int32),
        mask=kept <= (radius * (1 + ROUNDING)) ** 2,
        radius=jnp.minimum(radius, jnp.min(dropped, initial=jnp.inf).astype(radius.dtype)),
        positions=system.positions,
        cell=system.cell,
        largest_counts=within_shells(squared, shells),
        usable=finite & (within >= cutoff),
    )


def closest(squared: Float[Array, "n_atoms n"], width: int) -> tuple[Any, Any, Array]:
    """The `width` smallest of each row, their columns, and the distance (Å) to the nearest that has no slot.

    All in float32, which is enough for a list with a skin: compare with a radius that is larger by `ROUNDING`.
    """
    kept, slot = jax.lax.optimization_barrier(nearest(squared.astype(jnp.float32), width + 1))  # slow if it is sliced
    return kept[:, :width], slot[:, :width], jnp.sqrt(kept[:, width]) * (1 - ROUNDING)


def refresh(verlet: Verlet, system: System, shells: tuple[Shell, ...], skin: float) -> Verlet:
    """The lists of a batch, the stale ones among them searched anew, a few at a time.

    A batch in which each structure goes its own way has a stale list in nearly every step; to search all of them then
    would cost more than the potential. Under vmap a condition for each would search all of them, always.
    """
    stale = jax.vmap(lambda v, s: is_stale(v, s, shells))(verlet, system)
    n = len(stale)
    block = min(n, max(BLOCK, n // BLOCK))
    order = jnp.pad(jnp.argsort(~stale), (0, block), constant_values=n)  # stale ones first; n is no structure

    def some(k: Any, verlet: Any) -> Any:
        rows = jax.lax.dynamic_slice_in_dim(order, k * block, block)
        chosen = pytree.take((verlet, system), jnp.minimum(rows, n - 1))
        new = jax.vmap(lambda v, s: search(v, s, shells, skin))(*chosen)
        return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), verlet, new)

    return jax.lax.fori_loop(0, (jnp.sum(stale) + block - 1) // block, some, verlet)


def narrow(verlet: Verlet, system: System, shells: tuple[Shell, ...], capacities: tuple[int, ...]) -> Neighbors:
    """The neighbours within the cutoffs, of a list that is not stale; the same as a search would find."""
    system = jax.lax.stop_gradient(system)
    x = system.positions
    d = x[verlet.indices] + verlet.images.astype(x.dtype) @ system.cell - x[:, None, :]
    squared = jnp.where(verlet.mask, jnp.sum(d * d, axis=-1), jnp.inf)
    candidates = nearest_candidates(squared, verlet.indices, verlet.images, capacities[0])
    # a list that was cut within the cutoff has just been made, and its numbers are those of now
    n_neighbors = jnp.where(verlet.radius >= shells[0].cutoff, within_shells(squared, shells), verlet.largest_counts)
    return assemble(candidates, verlet.offsets, shells, capacities, n_neighbors, verlet.usable)
