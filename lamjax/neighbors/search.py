"""The jittable neighbour search over all images: right for every cell, quadratic in atoms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lamjax.lattice import FAR, reach, wrap_shift
from lamjax.neighbors.types import MadeFor, Neighbors, Shell, check_shells
from lamjax.system import System, check_single


class Candidates(NamedTuple):
    """Neighbours of each atom by increasing distance, as many as the widest shell has slots."""

    squared: Float[Array, "n_atoms capacity"]  # Å², infinite where there are fewer
    indices: Int[Array, "n_atoms capacity"]
    images: Int[Array, "n_atoms capacity 3"]


def all_images(
    system: System, shells: tuple[Shell, ...], capacities: tuple[int, ...], offsets: Int[Array, "n_offsets 3"]
) -> Neighbors:
    """The nearest neighbours of every atom, searching every image in `offsets`.

    `shells` and `capacities` (slots for each shell) are static. More neighbours than slots set `overflow`, unless the
    shell's own `sel` drops them (`truncated`); so do a cell that needs more images than `offsets` and positions that
    are not finite.
    """
    check_single(system, "all_images")
    system = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, system))
    n_offsets = offsets.shape[0]
    shift, finite = wrap_shift(system.positions, system.cell, system.pbc)
    squared = squared_distances(system, shift, offsets)
    kept, slot = nearest(squared, capacities[0])
    j, o = slot // n_offsets, slot % n_offsets
    images = offsets[o] + shift[j] - shift[:, None, :]
    complete = finite & (reach(system.cell, system.pbc, offsets) >= shells[0].cutoff)
    n_neighbors = within_shells(squared, shells)
    return assemble(Candidates(kept, j, images), offsets, shells, capacities, n_neighbors, complete)


def nearest(squared: Float[Array, "n_atoms n"], width: int) -> tuple[Array, Array]:
    """The `width` smallest of each row, ascending, and their columns; inf and 0 where there are fewer.

    Sorted in float32, for which XLA's search on CPUs is 14 times as fast: what differs by less has any order. The
    numbers themselves keep all their digits.
    """
    columns = min(width, squared.shape[1])
    rough, slot = jax.lax.top_k(-squared.astype(jnp.float32), columns)
    exact = squared.dtype == jnp.float32
    kept = -rough if exact else jnp.where(jnp.isinf(rough), jnp.inf, jnp.take_along_axis(squared, slot, axis=1))
    missing = ((0, 0), (0, width - columns))
    return jnp.pad(kept, missing, constant_values=jnp.inf), jnp.pad(slot, missing)


def within_shells(squared: Float[Array, "n_atoms n"], shells: tuple[Shell, ...]) -> Int[Array, " n_shells"]:
    """The largest number of neighbours of an atom within each shell."""
    return jnp.max(counted(squared, shells), axis=0, initial=0)


def counted(squared: Float[Array, "n_atoms n"], shells: tuple[Shell, ...]) -> Int[Array, "n_atoms n_shells"]:
    """The number of neighbours of each atom within each shell."""
    return jnp.stack([jnp.sum(squared <= s.cutoff**2, axis=1) for s in shells], axis=1).astype(jnp.int32)


def verdict(
    n_neighbors: Int[Array, "*batch n_shells"], shells: tuple[Shell, ...], capacities: tuple[int, ...]
) -> tuple[Array, Array]:
    """Whether slots are missing for so many neighbours, and whether the model's own `sel` drops some."""
    sel = jnp.array([jnp.iinfo(jnp.int32).max if s.sel is None else s.sel for s in shells], jnp.int32)
    kept = jnp.minimum(n_neighbors, sel)
    return jnp.any(kept > jnp.array(capacities), axis=-1), jnp.any(kept < n_neighbors, axis=-1)


def nearest_candidates(squared: Array, indices: Array, images: Array, width: int) -> Candidates:
    """The `width` nearest of each row (n_atoms, n) by their squared distances."""
    kept, slot = nearest(squared, width)
    taken = jnp.take_along_axis(indices, slot, axis=1), jnp.take_along_axis(images, slot[..., None], axis=1)
    return Candidates(kept, *taken)


def assemble(
    candidates: Candidates,
    offsets: Array,
    shells: tuple[Shell, ...],
    capacities: tuple[int, ...],
    n_neighbors: Any,
    complete: Any,
) -> Neighbors:
    """The list of sorted candidates, as many as `capacities[0]`.

    `complete` is False where more than a slot is missing; `n_neighbors` are the true numbers within the shells.
    """
    squared, indices, images = candidates
    missing, truncated = verdict(n_neighbors, shells, capacities)
    masks = [
        (squared[:, :width] <= s.cutoff**2) & (jnp.arange(width) < (width if s.sel is None else s.sel))
        for s, width in zip(shells, capacities, strict=True)
    ]
    own = jnp.arange(len(indices))[:, None]
    return Neighbors(
        indices=jnp.where(masks[0], indices, own).astype(jnp.int32),
        images=jnp.where(masks[0][..., None], images, 0).astype(jnp.int32),
        mask=masks[0],
        inner=tuple(masks[1:]),
        offsets=offsets,
        largest_counts=n_neighbors,
        overflow=missing | ~complete,
        truncated=truncated,
        made_for=MadeFor(tuple(shells)),
    )


def update(neighbors: Neighbors, system: System, shells: tuple[Shell, ...]) -> Neighbors:
    """The list rebuilt for new positions (and cell) in the same shapes; a past `overflow` or `truncated` is kept.

    Raises ValueError for a list of other cutoffs, and for one without the images that a search needs (batches of
    `data.pack` have none).
    """
    if neighbors.offsets.shape[-2] == 0:
        raise ValueError(
            "This list has no images to search, because it was made to be used once (data.pack, the calculator). "
            "Begin with lamjax.allocate, or relaxation.relax_structures for many structures."
        )
    check_shells(neighbors, shells, anew=True)
    new = all_images(system, shells, neighbors.capacities, neighbors.offsets)
    return new._replace(
        overflow=new.overflow | neighbors.overflow,
        truncated=new.truncated | neighbors.truncated,
        largest_counts=jnp.maximum(new.largest_counts, neighbors.largest_counts),
        made_for=None if neighbors.made_for is None else new.made_for,  # carried through a loop, it keeps its type
    )


def squared_distances(system: System, shift: Array, offsets: Array) -> Array:
    """|x_j + o cell - x_i|² of wrapped atoms, (n_atoms, n_atoms * n_offsets); inf for self, padding, absent images."""
    home = system.positions + shift.astype(system.cell.dtype) @ system.cell
    translation = offsets.astype(system.cell.dtype) @ system.cell
    d = home[None, :, None, :] + translation[None, None, :, :] - home[:, None, None, :]
    squared = jnp.sum(d * d, axis=-1)
    is_atom = system.numbers > 0
    own = jnp.eye(system.n_atoms, dtype=bool)[:, :, None] & jnp.all(offsets == 0, axis=1)
    absent = jnp.any((jnp.abs(offsets) >= FAR) | ((offsets != 0) & ~system.pbc), axis=1)
    usable = is_atom[:, None, None] & is_atom[None, :, None] & ~own & ~absent
    return jnp.where(usable, squared, jnp.inf).reshape(system.n_atoms, -1)
