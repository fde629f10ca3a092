"""How far one structure is from another of the same atoms: displacements, strain and volume, all differentiable."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics
from lamjax.system import System, check_single, masses, real

_NEAR = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
_STEPS = np.array([s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)])


def _full_precision(function: Callable) -> Callable:
    """The products of float32 that a GPU makes by default are good to 1e-3 only: an error of 0.01 Å across a cell."""

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        # a new context for every call: one that is entered again before it is left would never be left
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **keywords)

    return run


class StructureError(NamedTuple):
    """Distance of a structure from another one of the same atoms; with a leading axis for a batch."""

    dq: Float[Array, "*batch"]  # amu^1/2 Å, mass-weighted
    rmsd: Float[Array, "*batch"]  # Å, all atoms alike
    largest: Float[Array, "*batch"]  # Å, the atom that is farthest off
    strain: Float[Array, "*batch"]  # Frobenius norm of the Green-Lagrange strain from the target's cell to this one
    volume: Float[Array, "*batch"]  # relative change of the volume (area, length) from the target's cell to this one


@_full_precision
def structure_error(
    system: System, target: System, fixed: Bool[Array, "*batch n_atoms 3"] | None = None
) -> StructureError:
    """Dq = sqrt(Σ_j m_j |d_j|²) (amu^1/2 Å), RMSD, largest |d| (Å), strain and volume change of a system from `target`.

    d are the vectors of `aligned_displacement`. With cells h = h_t F (rows are lattice vectors) the strain is |E|,
    E = (F Fᵀ - 1)/2, which no rotation of a cell changes; directions that are not periodic count as unstrained.
    Dramko et al., arXiv 2512.01067 (Dq).

    Derivatives with respect to positions and cell are exact for dq, strain and volume, and 0 where dq or strain is.
    Those of rmsd and largest are for a rotation that is held; it is the best one for dq, so they are exact unless a
    molecule is turned.
    """
    system, target = jax.tree.map(jnp.asarray, (system, target))
    if system.positions.ndim == 3:
        return jax.vmap(structure_error)(system, target, fixed)
    d = aligned_displacement(system, target, fixed)
    squared = jnp.sum(d * d, axis=-1)
    strain, volume = _deformation(*_bases(system, target))
    return StructureError(
        dq=numerics.safe_sqrt(jnp.sum(masses(system) * squared)),
        rmsd=numerics.safe_sqrt(jnp.sum(squared) / jnp.maximum(jnp.sum(real(system)), 1)),
        largest=numerics.safe_sqrt(jnp.max(squared, initial=0)),
        strain=strain,
        volume=volume,
    )


@_full_precision
def aligned_displacement(
    system: System, target: System, fixed: Bool[Array, "*batch n_atoms 3"] | None = None
) -> Float[Array, "*batch n_atoms 3"]:
    """d = x* - x (Å), from the system to `target`, less what distinguishes no structures; 0 on padding.

    Both have the same atoms in the same order and the same pbc. Positions are first mapped from the system's cell to
    the target's, x -> x h⁻¹ h_t (normals of a slab or a wire to normals), so d lies in the target's cell. Each d is
    the shortest over all periodic images, exact in skewed cells. The mass-weighted mean is removed, and where no
    direction is periodic the proper rotation that makes dq smallest. If any component of an atom is `fixed` neither
    is: a fixed atom pins the frame. The turn of a wire about its axis counts.
    """
    system, target = jax.tree.map(jnp.asarray, (system, target))
    if system.positions.ndim == 3:
        return jax.vmap(aligned_displacement)(system, target, fixed)
    check_single(system, "aligned_displacement")
    check_single(target, "aligned_displacement")
    is_atom, mass = real(system)[:, None], masses(system)
    free = jnp.ones((), bool) if fixed is None else ~jnp.any(fixed & is_atom)
    weight = jnp.where(free, mass / jnp.maximum(jnp.sum(mass), 1), 0)[:, None]
    basis, target_basis = _bases(system, target)
    x = jnp.where(is_atom, system.positions, 0)
    x = x + x @ (jnp.linalg.inv(basis) @ (target_basis - basis))  # to the last digit x where the cells are equal
    raw = jnp.where(is_atom, target.positions - x, 0)
    d = raw + _images(raw, weight, target.cell, target_basis, system.pbc) @ target.cell
    d = d - jnp.sum(weight * d, axis=0)
    y = x - jnp.sum(weight * x, axis=0)
    turn = _turn(y, d, mass)
    d = d - y @ jnp.where(free & ~jnp.any(system.pbc), turn, 0)
    return jnp.where(is_atom, d, 0)


def nearest_image(d: Array, cell: Array, pbc: Array, reduction: Array) -> Float[Array, "n 3"]:
    """The integers S (as floats) that make d + S cell shortest, for each row of `d` (Å); no gradient.

    In a Minkowski-reduced basis the shortest is among the 27 images around the rounded one.
    """
    d, cell = jax.lax.stop_gradient((d, cell))
    reduction = reduction.astype(cell.dtype)
    basis = reduction @ jnp.where(pbc[:, None], cell, 0)
    rounded = -jnp.round(d @ jnp.linalg.pinv(basis))
    candidates = rounded[:, None, :] + jnp.asarray(_NEAR, cell.dtype)
    length = jnp.sum((d[:, None, :] + candidates @ basis) ** 2, axis=-1)
    best = jnp.take_along_axis(candidates, jnp.argmin(length, axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(pbc, best @ reduction, 0)


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


def _images(raw: Array, weight: Array, cell: Array, basis: Array, pbc: Array) -> Float[Array, "n 3"]:
    """The integers S (as floats) that make raw + S cell, less its weighted mean, shortest; no gradient.

    The common translation comes first, for an atom near half a lattice vector may have a nearer image without it. It
    is sought twice: near 0, and near the mean of the displacements on the circle, which any translation just adds to.
    """
    raw, weight, cell, basis = jax.lax.stop_gradient((raw, weight, cell, basis))
    reduction = reduced_lattice(cell, pbc)

    def settle(start: Any) -> tuple[Array, Array]:
        first = raw + nearest_image(raw - start, cell, pbc, reduction) @ cell
        images = nearest_image(raw - jnp.sum(weight * first, axis=0), cell, pbc, reduction)
        d = raw + images @ cell
        d = d - jnp.sum(weight * d, axis=0)
        return images, jnp.sum(weight * d * d)

    angle = 2 * jnp.pi * raw @ jnp.linalg.inv(basis)
    angle = jnp.arctan2(jnp.sum(weight * jnp.sin(angle), axis=0), jnp.sum(weight * jnp.cos(angle), axis=0))
    circular = jnp.where(pbc, angle / (2 * jnp.pi), 0) @ cell
    images, spread = jax.vmap(settle)(jnp.stack([jnp.zeros_like(circular), circular]))
    return images[jnp.argmin(spread)]


def _turn(y: Array, d: Array, mass: Array) -> Float[Array, "3 3"]:
    """R - 1 of the proper rotation R that makes Σ m |y + d - y R|² smallest (centred y, d); no gradient.

    None is needed for that of dq: it is stationary in R. Kabsch, Acta Cryst. A 34, 827 (1978).
    """
    y, d = jax.lax.stop_gradient((y, d))
    u, _, v = jnp.linalg.svd((mass[:, None] * y).T @ (y + d))
    mirrored = jnp.linalg.det(u @ v) < 0
    turn = (u * jnp.where(mirrored, jnp.array([1, 1, -1]), 1).astype(u.dtype)) @ v - jnp.eye(3, dtype=u.dtype)
    left = d - y @ turn
    # equal structures must come out at exactly 0, where the derivative is 0 and not a direction of rounding errors
    better = jnp.sum(mass[:, None] * left * left) < jnp.sum(mass[:, None] * d * d)
    return jnp.where(better, turn, 0)


def _deformation(basis: Array, target_basis: Array) -> tuple[Array, Array]:
    """Norm of the Green-Lagrange strain from the target's cell to this one, and the relative change of volume."""
    gradient = jnp.linalg.inv(target_basis) @ (basis - target_basis)  # F - 1
    strain = (gradient + gradient.T + gradient @ gradient.T) / 2
    return numerics.safe_norm(strain.ravel()), _volume(basis) / _volume(target_basis) - 1


def _bases(system: System, target: System) -> tuple[Array, Array]:
    """The two cells, (3, 3) each, rows of non-periodic directions completed by unit normals in the same way.

    Both are unit matrices if either spans no volume.
    """
    pbc, unit = system.pbc, jnp.eye(3, dtype=target.cell.dtype)
    begin = jnp.where(jnp.any(pbc), _aside(system, target), unit)
    basis, target_basis = _completed(system.cell, pbc, begin), _completed(target.cell, pbc, begin)
    spans = (_volume(basis) > 1e-6) & (_volume(target_basis) > 1e-6)
    return jnp.where(spans, basis, unit), jnp.where(spans, target_basis, unit)


def _aside(system: System, target: System) -> Float[Array, "3"]:
    """A unit vector from which both cells of a wire are completed; no gradient.

    It is normal to the target's axis, so that the other axis tilts away without a turn, and not along that axis.
    """
    cells = jax.lax.stop_gradient((system.cell, target.cell))
    axis, target_axis = (_unit(jnp.sum(jnp.where(system.pbc[:, None], cell, 0), axis=0)) for cell in cells)
    first = _unit(jnp.cross(target_axis, jnp.eye(3, dtype=axis.dtype)[jnp.argmin(jnp.abs(target_axis))]))
    return jnp.where(jnp.abs(axis @ first) > 0.8, jnp.cross(target_axis, first), first)


def _completed(cell: Array, pbc: Array, begin: Any) -> Float[Array, "3 3"]:
    """The cell with each row that is not periodic made the unit normal of the others; `begin` holds first guesses."""
    rows = jnp.where(pbc[:, None], cell, begin)
    for k in range(3):
        normal = _unit(jnp.cross(rows[k - 2], rows[k - 1]))
        rows = rows.at[k].set(jnp.where(pbc[k], rows[k], normal))
    return rows


def _unit(v: Array) -> Array:
    """v / |v|; 0 stays 0."""
    length = numerics.safe_norm(v)
    return v / jnp.where(length > 0, length, 1)


def _volume(basis: Array) -> Array:
    return jnp.abs(jnp.dot(basis[0], jnp.cross(basis[1], basis[2])))
