"""A relaxed structure that carries its own response to the parameters; what every property is a function of.

Properties are written as functions of parameters and structure. With the structure of `at_minimum` put in, JAX's
derivative of such a function is that of the re-relaxed property: dP/dθ = ∂P/∂θ - (∂P/∂z) H⁻¹ ∂²E/∂z∂θ, z the
coordinates of atoms and cell, H the Hessian. Maliyov, Grigorev, Swinburne, arXiv 2407.02414.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree
from pydantic import Field

from lamjax import pytree
from lamjax.config import configuration
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, check_potential
from lamjax.relaxation import CellConfig, Implicit, coordinates, implicit
from lamjax.relaxation.coordinates import Rows
from lamjax.relaxation.implicit import Point
from lamjax.relaxation.steps import Weights
from lamjax.relaxation.surface import Surface, over
from lamjax.system import System, as_system, check_single, fixed_mask, volume

RESPONSE = Implicit(tol=1e-9, max_iterations=1000, curvature=1e-6)
BLOCK = 32  # Hessian products side by side
SOFT = 1e-5  # eV/Å²: an internal mode of less curvature counts as free


@configuration
class PropertyConfig:
    """Which coordinates are relaxed, and how the minimum is differentiated by the parameters."""

    cell: Annotated[
        CellConfig | None, Field(description="what of the cell has been relaxed with the atoms; None: it is fixed")
    ] = CellConfig()
    fmax: Annotated[
        float,
        Field(
            gt=0,
            description="eV/Å: `converged` if no force on an atom nor on the cell is larger; others do not follow "
            "the parameters",
        ),
    ] = 1e-3
    response: Annotated[
        Any, Field(description="an Implicit, or what else has a `respond`: how dz/dθ is solved for; None: it is 0")
    ] = RESPONSE


RELAXED = PropertyConfig()


class Minimum(NamedTuple):
    """One relaxed structure; system, z and energy differentiate as the minimum does."""

    system: System
    surface: Surface  # of a batch of this one structure, which is its own reference
    z: Rows  # Å, coordinates of atoms and strain
    neighbors: Neighbors
    energy: Float[Array, ""]  # eV
    fmax: Float[Array, ""]  # eV/Å, the largest force on an atom, or on the cell if that was relaxed
    virial: Float[Array, "3 3"]  # eV, no gradient
    converged: Bool[Array, ""]  # fmax <= config.fmax, all finite, no neighbours missing


def at_minimum(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    config: PropertyConfig = RELAXED,
    *,
    fixed: Bool[Array, "n_atoms 3"] | None = None,
) -> Minimum:
    """The relaxed structure with the derivatives of a minimum of E + PV with respect to the parameters.

    `system` is where a relaxation ended, `neighbors` its list. What has been differentiated on the way there does not
    count: the derivative is that of the minimum alone. Pure; jit and vmap it outside.
    """
    check_potential(potential, "A property")
    system = as_system(system)
    check_single(system, "A property")
    system, neighbors = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, (system, neighbors)))
    fixed = None if fixed is None else fixed_mask(fixed, system.numbers)[None]
    surface, lists = over(potential, _batch(system), fixed, config.cell), _batch(neighbors)
    z = surface.start()
    evaluation = surface.evaluate(jax.lax.stop_gradient(params), z, lists)
    fmax = surface.largest(evaluation.force)
    converged = evaluation.is_usable() & (fmax <= config.fmax) & ~lists.overflow
    if config.response is not None:
        weights, point = Weights(params, {}, surface.reference.cell), Point(z, evaluation.energy, lists)
        z, energy = implicit.at_minimum(surface, weights, point, converged, config.response)
    else:
        energy = surface.energy(params, z, lists)
    placed = pytree.take(surface.place(z), 0)
    return Minimum(placed, surface, z[0], neighbors, energy[0], fmax[0], evaluation.virial[0], converged[0])


def slope(
    potential: Potential, params: PyTree, relaxed: Minimum, z: Rows, cell: CellConfig | None, along: Rows
) -> Float[Array, ""]:
    """v·∇(E + PV) at z along v (eV), differentiable with respect to params and z."""
    return jax.jvp(lambda z: enthalpy(potential, params, relaxed, z, cell), (z,), (along,))[1]


def bend(
    potential: Potential, params: PyTree, relaxed: Minimum, z: Rows, cell: CellConfig | None, along: Rows
) -> Float[Array, ""]:
    """vᵀ H v of E + PV at z along v (eV), differentiable with respect to params and z."""

    def slope_at(t):
        return slope(potential, params, relaxed, z + t * along, cell, along)

    return jax.jvp(slope_at, (jnp.zeros((), z.dtype),), (jnp.ones((), z.dtype),))[1]


def enthalpy(
    potential: Potential, params: PyTree, relaxed: Minimum, z: Rows, cell: CellConfig | None
) -> Float[Array, ""]:
    """E + PV (eV) near the minimum."""
    pressure, energy_of_place = coordinates.pressure(cell), energy(potential, params, relaxed, z)
    return energy_of_place + (pressure * volume(place(relaxed, z)) if pressure else 0.0)


def energy(potential: Potential, params: PyTree, relaxed: Minimum, z: Rows) -> Float[Array, ""]:
    """E (eV) near the minimum, differentiable up to four times."""
    return potential.energy(params, place(relaxed, z), relaxed.neighbors)


def place(relaxed: Minimum, z: Rows) -> System:
    """The structure at z, as `relaxation.coordinates` has it, to the fourth order in the strain.

    The structure is its own reference, so that derivatives up to the fourth are exact, for a fifth of the program.
    """
    u, unit = z[-3:] / strain_scale(relaxed), jnp.eye(3, dtype=z.dtype)
    deformation = unit
    for k in (4, 3, 2, 1):
        deformation = unit + u @ deformation / k
    reference = pytree.take(relaxed.surface.reference, 0)
    return reference._replace(positions=z[:-3] @ deformation, cell=reference.cell @ deformation)


def hessian(potential: Potential, params: PyTree, relaxed: Minimum, cell: CellConfig | None) -> Float[Array, "n n"]:
    """∂²(E + PV)/∂z² (eV/Å²), n three times the number of rows of z: forward-over-reverse products in blocks.

    Without derivatives: properties are formed from it so that it needs none.
    """
    params, z = jax.lax.stop_gradient((params, relaxed.z))

    def row(v):
        return jax.grad(lambda z: slope(potential, params, relaxed, z, cell, v.reshape(z.shape)))(z).ravel()

    matrix = jax.lax.map(row, jnp.eye(z.size, dtype=z.dtype), batch_size=min(BLOCK, z.size))
    return (matrix + matrix.T) / 2


def within(relaxed: Minimum, cell: CellConfig | None) -> Float[Array, "n n"]:
    """The projector on the changes of z that are free and move the structure in itself, as a matrix."""
    z = jax.lax.stop_gradient(relaxed.z)
    surface = over(relaxed.surface.potential, relaxed.surface.reference, ~relaxed.surface.free[:, :-3], cell)
    rigid = implicit.rigid_motions(surface, z[None])

    def project(v):
        v = surface.project(v.reshape(1, *z.shape))
        return rigid(v)[0].ravel()

    return jax.vmap(project)(jnp.eye(z.size, dtype=z.dtype))


def strain_scale(relaxed: Minimum) -> Float[Array, ""]:
    """s in z = s u: Å of z in a unit of the logarithmic strain u."""
    return jax.vmap(coordinates.scale)(relaxed.surface.reference)[0]


class Inverse(NamedTuple):
    """The inverse of a Hessian on what may change, and what stood in its way."""

    matrix: Float[Array, "n n"]  # Å²/eV
    least: Float[Array, ""]  # eV/Å², the least eigenvalue over free coordinates; infinite without any


def inverse(matrix: Float[Array, "n n"], projector: Float[Array, "n n"], soft: float) -> Inverse:
    """The pseudo-inverse of P H P on the range of P; eigenvalues of a size below `soft` (eV/Å²) are left out."""
    shift = 1e6  # eV/Å²: coordinates that are not free get the largest eigenvalues
    n = len(matrix)
    inside = projector @ matrix @ projector + shift * (jnp.eye(n, dtype=matrix.dtype) - projector)
    values, vectors = jnp.linalg.eigh((inside + inside.T) / 2)
    free = jnp.einsum("in,ij,jn->n", vectors, projector, vectors) > 0.5
    kept = free & (jnp.abs(values) > soft)
    weight = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return Inverse((vectors * weight) @ vectors.T, jnp.min(jnp.where(free, values, jnp.inf)))


def check_crystal(system: System, what: str, remedy: str = "") -> None:
    """ValueError for a structure that is not periodic in three directions, where that is known."""
    pbc = system.pbc
    if isinstance(pbc, jax.core.Tracer) or np.all(np.asarray(pbc)):
        return
    n = int(np.sum(np.asarray(pbc)))
    kind = {0: "a molecule (no periodic direction)", 1: "a wire (one periodic direction)", 2: "a slab (two)"}[n]
    raise ValueError(
        f"{what} belongs to a crystal, periodic in three directions; this structure is {kind}. "
        f"{remedy or 'Set pbc and the cell if it is a crystal.'}"
    )


def real_volume(system: System) -> Float[Array, ""]:
    """The volume (Å³); 1 where there is no cell, so that nothing is divided by zero."""
    size = volume(system)
    return jnp.where(size > 0, size, 1)


def _batch(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)
