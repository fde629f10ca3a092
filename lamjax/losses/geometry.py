"""Differences of two structures of the same atoms: displacements, strain and volume, all differentiable."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lamjax import numerics
from lamjax.lattice import basis, green_lagrange, nearest_image, reduced_lattice, unit_vector, volume
from lamjax.system import System, check_single, masses, real


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
    strain, change = green_lagrange(*_bases(system, target))
    return StructureError(
        dq=numerics.safe_sqrt(jnp.sum(masses(system) * squared)),
        rmsd=numerics.safe_sqrt(jnp.sum(squared) / jnp.maximum(jnp.sum(real(system)), 1)),
        largest=numerics.safe_sqrt(jnp.max(squared, initial=0)),
        strain=numerics.safe_norm(strain.ravel()),
        volume=change,
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
    own, aim = _bases(system, target)
    x = jnp.where(is_atom, system.positions, 0)
    x = x + x @ (jnp.linalg.inv(own) @ (aim - own))  # to the last digit x where the cells are equal
    raw = jnp.where(is_atom, target.positions - x, 0)
    d = raw + _images(raw, weight, target.cell, aim, system.pbc) @ target.cell
    d = d - jnp.sum(weight * d, axis=0)
    y = x - jnp.sum(weight * x, axis=0)
    turn = _turn(y, d, mass)
    d = d - y @ jnp.where(free & ~jnp.any(system.pbc), turn, 0)
    return jnp.where(is_atom, d, 0)


def _images(raw: Array, weight: Array, cell: Array, complete: Array, pbc: Array) -> Float[Array, "n 3"]:
    """The integers S (as floats) that make raw + S cell, less its weighted mean, shortest; no gradient.

    The common translation comes first, for an atom near half a lattice vector may have a nearer image without it. It
    is sought twice: near 0, and near the mean of the displacements on the circle, which any translation just adds to.
    """
    raw, weight, cell, complete = jax.lax.stop_gradient((raw, weight, cell, complete))
    reduction = reduced_lattice(cell, pbc)

    def settle(start: Any) -> tuple[Array, Array]:
        first = raw + nearest_image(raw - start, cell, pbc, reduction) @ cell
        images = nearest_image(raw - jnp.sum(weight * first, axis=0), cell, pbc, reduction)
        d = raw + images @ cell
        d = d - jnp.sum(weight * d, axis=0)
        return images, jnp.sum(weight * d * d)

    angle = 2 * jnp.pi * raw @ jnp.linalg.inv(complete)
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


def _bases(system: System, target: System) -> tuple[Array, Array]:
    """The two cells, (3, 3) each, rows of non-periodic directions completed by unit normals in the same way.

    Both are unit matrices if either spans no volume.
    """
    pbc, unit = system.pbc, jnp.eye(3, dtype=target.cell.dtype)
    aside = _aside(system, target)
    own, aim = basis(system.cell, pbc, aside), basis(target.cell, pbc, aside)
    spans = (volume(own) > 1e-6) & (volume(aim) > 1e-6)
    return jnp.where(spans, own, unit), jnp.where(spans, aim, unit)


def _aside(system: System, target: System) -> Float[Array, "3"]:
    """A unit vector from which both cells of a wire are completed; no gradient.

    It is normal to the target's axis, so that the other axis tilts away without a turn, and not along that axis.
    """
    cells = jax.lax.stop_gradient((system.cell, target.cell))
    axis, target_axis = (unit_vector(jnp.sum(jnp.where(system.pbc[:, None], cell, 0), axis=0)) for cell in cells)
    first = unit_vector(jnp.cross(target_axis, jnp.eye(3, dtype=axis.dtype)[jnp.argmin(jnp.abs(target_axis))]))
    return jnp.where(jnp.abs(axis @ first) > 0.8, jnp.cross(target_axis, first), first)
