"""Energy of a crystal against its volume: bulk modulus and its derivative by pressure."""

from dataclasses import field, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree
from pydantic import Field

from lamjax import neighbors as neighbor_lists
from lamjax import units
from lamjax.config import configuration
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import RELAXED, RESPONSE, SOFT, Minimum, PropertyConfig
from lamjax.relaxation import CellConfig, RelaxConfig, relax
from lamjax.relaxation.coordinates import Rows
from lamjax.system import System, scaled, volume


class BulkModulus(NamedTuple):
    """Derivatives at the relaxed volume itself."""

    volume: Float[Array, ""]  # Å³
    pressure: Float[Array, ""]  # GPa, -dE/dV
    bulk_modulus: Float[Array, ""]  # GPa, B = -V dP/dV
    derivative: Float[Array, ""]  # B' = dB/dP
    stable: Bool[Array, ""]  # B > 0, and no curvature of the relaxing coordinates is negative
    fmax: Float[Array, ""]  # eV/Å
    converged: Bool[Array, ""]


USUAL_STRAINS = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)


@configuration
class EquationOfStateConfig:
    """At which volumes the energy is computed, and what relaxes there."""

    strains: Annotated[tuple[float, ...], Field(description="of lengths")] = USUAL_STRAINS
    shape: Annotated[
        bool, Field(description="the shape of the cell relaxes at each volume, as under hydrostatic pressure")
    ] = True
    relax: RelaxConfig = field(default_factory=lambda: RelaxConfig(fmax=1e-4, max_steps=1000, adjoint=RESPONSE))

    def __post_init__(self) -> None:
        if len(set(self.strains)) < 4 or min(self.strains) <= -0.5:
            raise ValueError(
                f"An equation of state of Birch and Murnaghan has four numbers: it needs at least 4 different strains, "
                f"each above -0.5, got {list(self.strains)}."
            )


USUAL = EquationOfStateConfig()


class EquationOfState(NamedTuple):
    """Energies at volumes, and the third-order equation of Birch and Murnaghan that fits them best."""

    volumes: Float[Array, " n"]  # Å³
    energies: Float[Array, " n"]  # eV
    volume: Float[Array, ""]  # Å³, of least energy
    energy: Float[Array, ""]  # eV, there
    bulk_modulus: Float[Array, ""]  # GPa
    derivative: Float[Array, ""]  # B'
    residual: Float[Array, ""]  # eV, root mean square residual of the fit
    inside: Bool[Array, ""]  # the volume of least energy lies among the volumes
    converged: Bool[Array, " n"]  # of each relaxation
    overflow: Bool[Array, ""]  # neighbours were missing: allocate the list at the smallest volume


def bulk_modulus(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    config: PropertyConfig = RELAXED,
    *,
    shape: bool = True,
) -> BulkModulus:
    """B and B' of a relaxed crystal from the second and third derivative of its energy by the volume, without a fit.

    Atoms, and with `shape` the shape of the cell, relax along the way: B is then that of hydrostatic pressure, the
    Reuss average of the elastic constants. With e(v) the energy at ln(V/V0) = v: P = -e'/V, B = (e'' - e')/V and
    B' = -(e''' - 2e'' + e')/(V B); e'' and e''' are derivatives along the first-order path of what relaxes alone
    (2n + 1 theorem). Pure; ValueError for what is no crystal.
    """
    minimum.check_crystal(system, "A bulk modulus")
    return bulk_modulus_at(potential, params, minimum.at_minimum(potential, params, system, neighbors, config), shape)


def bulk_modulus_at(
    potential: Potential,
    params: Any,
    equilibrium: Minimum,
    shape: bool = True,
    hessian: Float[Array, "n n"] | None = None,
) -> BulkModulus:
    """As `bulk_modulus`, of what `at_minimum` gives: for several properties of one crystal.

    `hessian` is that of `minimum.hessian` without a pressure, if it is known.
    """
    direction, least = volume_path(potential, params, equilibrium, shape, hessian)

    def along(t):
        return minimum.energy(potential, params, equilibrium, equilibrium.z + t.astype(direction.dtype) * direction)

    def derivative_of(function):  # forwards: with one variable the smaller program
        return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))

    slope = lambda t: derivative_of(along)(t)[1]  # noqa: E731
    bend = lambda t: derivative_of(slope)(t)[1]  # noqa: E731
    t = jnp.zeros((), equilibrium.energy.dtype)
    e1, _ = derivative_of(slope)(t)
    e2, e3 = derivative_of(bend)(t)
    size = minimum.real_volume(equilibrium.system)
    modulus = (e2 - e1) / size
    derivative = -(e3 - 2 * e2 + e1) / (size * modulus)
    return BulkModulus(
        volume=size,
        pressure=-e1 / size / units.GPA,
        bulk_modulus=modulus / units.GPA,
        derivative=derivative,
        stable=(jax.lax.stop_gradient(modulus) > 0) & (least > -SOFT),
        fmax=equilibrium.fmax,
        converged=equilibrium.converged,
    )


def volume_path(
    potential: Potential, params: PyTree, equilibrium: Minimum, shape: bool, hessian: Float[Array, "n n"] | None = None
) -> tuple[Rows, Float[Array, ""]]:
    """dz/d ln V with everything else relaxing, differentiable; and the least curvature of what relaxes (eV/Å²).

    A volume-preserving change y answers the isotropic strain d by H_yy y = -H_yd d.
    """
    free = CellConfig(keep="volume") if shape else None
    projector = jax.lax.stop_gradient(minimum.within(equilibrium, free))
    matrix = (
        minimum.hessian(potential, params, equilibrium, None) if hessian is None else jax.lax.stop_gradient(hessian)
    )
    solved = minimum.inverse(matrix, projector, SOFT)
    scale = minimum.strain_scale(equilibrium)
    straight = jnp.zeros_like(equilibrium.z).at[-3:].set(scale / 3 * jnp.eye(3, dtype=equilibrium.z.dtype))

    def product(v):
        change = jax.grad(lambda z: minimum.slope(potential, params, equilibrium, z, None, v.reshape(z.shape)))(
            equilibrium.z
        )
        return projector @ change.ravel()

    def solve(_, rhs):
        return solved.matrix @ rhs

    rhs = -product(straight.ravel())
    answer = jax.lax.custom_linear_solve(lambda v: product(projector @ v), rhs, solve, symmetric=True)
    return straight + (projector @ answer).reshape(equilibrium.z.shape), jax.lax.stop_gradient(solved.least)


def equation_of_state(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    config: EquationOfStateConfig = USUAL,
    at: PropertyConfig = RELAXED,
) -> EquationOfState:
    """Energies of a relaxed crystal at several volumes, each relaxed there, and the equation of state that fits them.

    E is a polynomial of third order in V^(-2/3) (Birch, Phys. Rev. 71, 809, 1947), found by linear least squares.
    `at` says how the crystal itself was relaxed. `neighbors` must be wide enough for the smallest volume, such as those
    of `compressed`; `overflow` tells if they are not.
    """
    minimum.check_crystal(system, "An equation of state")
    equilibrium = minimum.at_minimum(potential, params, system, neighbors, at)
    stretch = 1 + jnp.asarray(config.strains, equilibrium.z.dtype)
    start = jax.vmap(lambda factor: scaled(equilibrium.system, factor))(stretch)
    lists = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(stretch), *jnp.shape(x))), neighbors)
    cell = CellConfig(keep="volume") if config.shape else None
    relaxed = relax(potential, params, start, lists, replace(config.relax, cell=cell))
    volumes = volume(start)
    fit = birch_murnaghan(volumes, relaxed.energy)
    least, most = jnp.min(volumes), jnp.max(volumes)
    return EquationOfState(
        volumes=volumes,
        energies=relaxed.energy,
        volume=fit[0],
        energy=fit[1],
        bulk_modulus=fit[2] / units.GPA,
        derivative=fit[3],
        residual=fit[4],
        inside=(fit[0] >= least) & (fit[0] <= most),
        converged=relaxed.converged,
        overflow=jnp.any(relaxed.overflow),
    )


def compressed(potential: Potential, system: System, config: EquationOfStateConfig = USUAL):
    """A list of neighbours of the crystal with room for those at the smallest volume of an equation of state; on the
    host."""
    squeezed = 1 + min(0.0, *config.strains) - 0.01
    small = scaled(jax.tree.map(np.asarray, system), squeezed)
    n_neighbors = neighbor_lists.count(small, potential.shells)
    return neighbor_lists.allocate(
        system, potential.shells, neighbor_lists.plan_capacities(n_neighbors, potential.shells)
    )


def birch_murnaghan(volumes: Float[Array, " n"], energies: Float[Array, " n"]):
    """Volume and energy of the minimum, bulk modulus B = V E'' (eV/Å³), B', and what the fit leaves (eV), of E(V).

    E = Σ_k c_k x^k, k up to 3, x = (V/V1)^(-2/3), V1 the mean volume: linear in c, and the minimum is a root of a
    parabola.
    """
    middle, origin = jnp.mean(volumes), jnp.mean(energies)
    x = (volumes / middle) ** (-2 / 3) - 1
    powers = x[:, None] ** jnp.arange(4)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x))) ** jnp.arange(4)
    design = powers / scale
    c = jnp.linalg.solve(design.T @ design, design.T @ (energies - origin)) / scale
    root = jnp.sqrt(jnp.maximum(c[2] ** 2 - 3 * c[1] * c[3], 0))
    turn = -c[1] / (c[2] + root)  # of the two roots the one with E'' > 0, without cancellation
    x0 = 1 + turn
    v0 = middle * x0 ** (-3 / 2)
    slope2, slope3 = 2 * c[2] + 6 * c[3] * turn, 6 * c[3]  # d²E/dx², d³E/dx³ at the minimum, where dE/dx = 0
    # with x ~ V^(-2/3): V d/dV = -(2/3) x d/dx
    e2 = 4 / 9 * x0**2 * slope2  # (V d/dV)² E
    e3 = -8 / 27 * (x0**3 * slope3 + 3 * x0**2 * slope2)  # (V d/dV)³ E
    modulus = e2 / v0
    derivative = 2 - e3 / e2
    least = origin + c[0] + turn * (c[1] + turn * (c[2] + turn * c[3]))
    left = energies - origin - powers @ c
    return v0, least, modulus, derivative, jnp.sqrt(jnp.mean(left**2))
