"""The lattice of a cell: a basis, heights, images within a cutoff, reduction, nearest images, projections, strain.

Functions of arrays: `cell` (3, 3), whose rows are lattice vectors (Å), and `pbc` (3,). Rows of directions that are not
periodic never count. What is not said to be on the host is for jax programs too; numpy arrays stay numpy arrays there.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import minkowski_reduce
from jaxtyping import Array, Bool, Float, Int

FAR = 1 << 14  # images beyond this are padding of a list of images
NEAR = 8  # cells beside the home cell, whose atoms stay where they are in float32
_NEAR_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
_STEPS = np.array([s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)])


def _module(*arrays: Any) -> Any:
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


# ---- basis, heights and projections


def basis(cell: Array, pbc: Array, aside: Array | None = None) -> Float[Array, "3 3"]:
    """The cell with the rows of the non-periodic directions replaced by unit normals of the other rows.

    `aside` is a vector that is not along the only periodic direction of a wire: the first normal is normal to both.
    """
    xp = _module(cell, pbc)
    unit = xp.eye(3, dtype=cell.dtype)
    if aside is None:
        axis = xp.sum(xp.where(pbc[:, None], cell, 0), axis=0)  # the periodic row, where there is one only
        aside = unit_vector(xp.cross(axis, unit[xp.argmin(xp.abs(axis))]))
    rows = list(xp.where(pbc[:, None], cell, xp.where(xp.any(pbc), aside, unit)))
    for k in range(3):
        rows[k] = xp.where(pbc[k], rows[k], unit_vector(xp.cross(rows[k - 2], rows[k - 1])))
    return xp.stack(rows)


def complete_cell(cell: Array, pbc: Array) -> Float[np.ndarray, "3 3"]:
    """As `basis`, on the host, in float64."""
    return basis(np.asarray(cell, np.float64), np.asarray(pbc, bool))


def unit_vector(v: Float[Array, "3"]) -> Float[Array, "3"]:
    """v / |v|, with finite derivatives; 0 stays 0."""
    xp = _module(v)
    squared = xp.sum(v * v)
    length = xp.sqrt(xp.where(squared > 0, squared, 1))
    # the outer `where` keeps XLA from making a product with rsqrt of it, which rounds otherwise than its constants do
    return v / xp.where(squared > 0, length, 1)


def volume(cell: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch"]:
    """|det cell| in Å³; 0 without a three-dimensional cell."""
    xp = _module(cell)
    return xp.abs(xp.linalg.det(cell))


def heights(basis: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """The distance (Å) between opposite faces of a basis along each of its vectors."""
    xp = _module(basis)
    return 1 / xp.linalg.norm(xp.linalg.inv(basis), axis=0)


def face_distances(cell: Array, pbc: Array) -> Float[np.ndarray, "3"]:
    """As `heights`, of a cell, meaningful where it is periodic; 0 where vectors are dependent. On the host."""
    complete = complete_cell(cell, pbc)
    return heights(complete) if volume(complete) > 1e-10 else np.zeros(3)


def empty_intervals(
    fractional: Float[np.ndarray, "n_atoms 3"],
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The widest interval without atoms along each lattice vector: its length, and the coordinate where it ends.

    Both are shares of the lattice vector, coordinates are taken modulo 1; times the distances of faces they are in Å.
    """
    places = np.sort(fractional % 1, axis=0)
    gaps = np.diff(np.concatenate([places, places[:1] + 1]), axis=0)
    widest = np.argmax(gaps, axis=0)
    along = np.arange(3)
    return gaps[widest, along], places[(widest + 1) % len(places), along]


def projector(cell: Array, pbc: Array) -> Float[Array, "3 3"]:
    """Onto the span of the periodic lattice vectors: the identity for a crystal, 0 for a molecule."""
    xp = _module(cell, pbc)
    rows = xp.where(pbc[:, None], cell, 0)
    return xp.where(xp.all(pbc), xp.eye(3, dtype=rows.dtype), xp.linalg.pinv(rows) @ rows)


# ---- images within a cutoff


def n_images(cell: Array, pbc: Array, cutoff: float) -> Int[np.ndarray, "3"]:
    """Numbers of cells along each lattice vector within the cutoff (Å) of wrapped atoms. On the host."""
    faces = np.maximum(face_distances(cell, pbc), 1e-3)
    return np.where(pbc, np.ceil(cutoff / faces - 1e-6), 0).astype(int)


def image_offsets(cell: Array, pbc: Array, cutoff: float) -> Int[np.ndarray, "n_offsets 3"]:
    """All integer images that wrapped atoms can see within the cutoff (Å), home image first. On the host."""
    return images_around(n_images(cell, pbc, cutoff))


def images_around(n: Int[np.ndarray, "3"]) -> Int[np.ndarray, "n_offsets 3"]:
    """All integer images at most `n` cells away along each lattice vector, home image first. On the host."""
    grid = np.indices((2 * n + 1).tolist()).reshape(3, -1).T - n
    return grid[np.argsort((grid**2).sum(axis=1), kind="stable")].astype(np.int32)


def padded_images(images: Int[np.ndarray, "n_offsets 3"], n: int) -> Int[np.ndarray, "n 3"]:
    """The images and, up to `n`, some that are `FAR` away, where no search looks. On the host."""
    return np.concatenate([images, np.full((max(0, n - len(images)), 3), FAR, np.int32)])


def reach(cell: Array, pbc: Array, offsets: Int[Array, "n_offsets 3"]) -> Float[Array, ""]:
    """The radius (Å) within which the images in `offsets` of wrapped atoms are complete; inf without periodicity."""
    images = jnp.max(jnp.where(jnp.abs(offsets) < FAR, offsets, 0), axis=0)
    return jnp.min(jnp.where(pbc, (images + 1e-6) * heights(basis(cell, pbc)), jnp.inf))


# ---- atoms in the home cell


def wrap_shift(positions: Array, cell: Array, pbc: Array) -> tuple[Int[Array, "n_atoms 3"], Bool[Array, ""]]:
    """The integer lattice vector that brings each atom home, and whether all are finite and of a sane size."""
    fractional = positions @ jnp.linalg.inv(basis(cell, pbc))
    shift = jnp.where(pbc, -jnp.floor(fractional), 0)
    return shift.astype(jnp.int32), jnp.all(jnp.isfinite(fractional) & (jnp.abs(shift) < FAR))


def home_shift(positions: Array, cell: Array, pbc: Array) -> Int[np.ndarray, "n_atoms 3"]:
    """Lattice vectors (whole numbers) that bring atoms near the home cell, in periodic directions only. On the host.

    None if all atoms are within a few cells: that costs few digits, and molecules across a face stay whole. Else all
    atoms are moved by the same, and those that are still far by what brings each of them home.
    """
    fractional = np.asarray(positions, np.float64) @ np.linalg.inv(complete_cell(cell, pbc))
    fractional = np.where(pbc, fractional, 0)
    if not _far(fractional).any():
        return np.zeros(np.shape(positions), np.int64)
    common = np.floor(np.median(fractional, axis=0))
    rest = fractional - common
    far = _far(rest).any(axis=1, keepdims=True)
    return -(common + np.where(far, np.floor(rest), 0)).astype(np.int64)


def _far(fractional: Array) -> Bool[np.ndarray, "n_atoms 3"]:
    return (fractional < -NEAR) | (fractional >= NEAR + 1)


# ---- reduction, and the nearest image


def reduced_lattice(cell: Array, pbc: Array) -> Int[Array, "3 3"]:
    """Integers T so that T cell is a Minkowski-reduced basis of the lattice of the periodic directions; no gradient.

    While a lattice vector can be shortened by adding (or taking away) others, it is.
    """
    cell = jnp.where(pbc[:, None], jax.lax.stop_gradient(cell), 0)

    def shorten(state: Any) -> tuple[Array, Array, Any]:
        transform, _, n = state
        changed = jnp.zeros((), bool)
        for k in range(3):
            transform, better = _shorten_row(transform, cell, pbc, k)
            changed = changed | better
        return transform, changed, n + 1

    start = (jnp.eye(3, dtype=jnp.int32), jnp.ones((), bool), 0)
    # a lattice takes a few rounds; the limit is for vectors that span none
    return jax.lax.while_loop(lambda state: state[1] & (state[2] < 100), shorten, start)[0]


def _shorten_row(transform: Array, cell: Array, pbc: Array, k: int) -> tuple[Array, Array]:
    """Row k replaced by the shortest of row + s i + t j, s and t being -1, 0, 1 or the rounded projections."""
    i, j = [axis for axis in range(3) if axis != k]
    rows = transform.astype(cell.dtype) @ cell
    square = jnp.sum(rows * rows, axis=1)
    s, t = (-jnp.round(rows[k] @ rows[axis] / jnp.maximum(square[axis], 1e-12)).astype(jnp.int32) for axis in (i, j))
    zero = jnp.zeros_like(s)
    steps = jnp.concatenate([jnp.asarray(_STEPS, jnp.int32), jnp.stack([jnp.stack([s, zero]), jnp.stack([zero, t])])])
    steps = jnp.where(pbc[jnp.array([i, j])] & pbc[k], steps, 0)
    options = transform[k] + steps @ transform[jnp.array([i, j])]
    length = jnp.sum((options.astype(cell.dtype) @ cell) ** 2, axis=1)
    best = jnp.argmin(length)
    better = length[best] < square[k] * (1 - 1e-5)
    return transform.at[k].set(jnp.where(better, options[best], transform[k])), better


def nearest_image(d: Array, cell: Array, pbc: Array, reduction: Array) -> Float[Array, "n 3"]:
    """The integers S (as floats) that make d + S cell shortest, for each row of `d` (Å); no gradient.

    `reduction` is that of `reduced_lattice`, in which the shortest is among the 27 images around the rounded one.
    """
    d, cell = jax.lax.stop_gradient((d, cell))
    reduction = reduction.astype(cell.dtype)
    reduced = reduction @ jnp.where(pbc[:, None], cell, 0)
    rounded = -jnp.round(d @ jnp.linalg.pinv(reduced))
    candidates = rounded[:, None, :] + jnp.asarray(_NEAR_IMAGES, cell.dtype)
    length = jnp.sum((d[:, None, :] + candidates @ reduced) ** 2, axis=-1)
    best = jnp.take_along_axis(candidates, jnp.argmin(length, axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(pbc, best @ reduction, 0)


def shortest(d: Float[np.ndarray, "*n 3"], cell: np.ndarray, pbc: np.ndarray) -> Float[np.ndarray, "*n 3"]:
    """The shortest periodic image of every vector d (Å), in any cell. On the host, one image of all after the other."""
    if not np.any(pbc):
        return d
    periodic: Any = pbc
    reduced, _ = minkowski_reduce(complete_cell(cell, pbc), periodic)
    d = d - np.where(pbc, np.round(d @ np.linalg.inv(reduced)), 0) @ reduced
    images = _NEAR_IMAGES[np.all((_NEAR_IMAGES == 0) | pbc, axis=1)] @ reduced
    images = images[np.argsort(np.any(images != 0, axis=1), kind="stable")]  # the home image first
    least, chosen = np.zeros(d.shape[:-1]), np.zeros(d.shape[:-1], int)  # of |d + image|² - |d|², which is 0 at home
    for k, image in enumerate(images):
        change = image @ image + 2 * d @ image
        chosen = np.where(change < least, k, chosen)
        least = np.minimum(change, least)
    return d + images[chosen]


# ---- strain


def deformation(cell: Array, reference: Array) -> Float[np.ndarray, "3 3"]:
    """F - 1 of the deformation x -> x F that makes the cell of the reference; 0 along what has no vectors. Host."""
    cell, reference = (np.asarray(x, np.float64) for x in (cell, reference))
    return np.linalg.pinv(reference) @ (cell - reference)


def green_lagrange(basis: Float[Array, "3 3"], reference: Float[Array, "3 3"]) -> tuple[Array, Array]:
    """E = (F Fᵀ - 1)/2 of basis = reference F, which no rotation of either changes, and the volume's |det F| - 1.

    Both are exactly 0 for equal bases.
    """
    g = jnp.linalg.inv(reference) @ (basis - reference)  # F - 1
    change = jnp.trace(g) + (jnp.trace(g) ** 2 - jnp.trace(g @ g)) / 2 + jnp.linalg.det(g)  # det F - 1
    return (g + g.T + g @ g.T) / 2, jnp.where(change < -1, -2 - change, change)
