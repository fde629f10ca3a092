"""Elastic constants from second derivatives of the energy, with the response of the atoms inside the cell."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from lamjax import units
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import RELAXED, SOFT, Minimum, PropertyConfig
from lamjax.relaxation import CellConfig, coordinates, implicit
from lamjax.system import System

SHEET = (0, 1, 5)  # xx, yy, xy of Voigt's order


class ElasticTensor(NamedTuple):
    """Elastic constants of one crystal, and what may be wrong with them. Moduli are in GPa."""

    tensor: Float[Array, "6 6"]  # GPa, Voigt xx yy zz yz xz xy, engineering shear strains
    bulk_voigt: Float[Array, ""]
    bulk_reuss: Float[Array, ""]
    bulk: Float[Array, ""]  # mean of Voigt and Reuss (Hill)
    shear_voigt: Float[Array, ""]
    shear_reuss: Float[Array, ""]
    shear: Float[Array, ""]  # likewise
    young: Float[Array, ""]  # 9KG/(3K + G)
    poisson: Float[Array, ""]  # (3K - 2G)/(6K + 2G)
    pugh: Float[Array, ""]  # K/G
    anisotropy: Float[Array, ""]  # universal: 5 G_V/G_R + K_V/K_R - 6; 0 if isotropic
    least_stiffness: Float[Array, ""]  # GPa, least eigenvalue of the tensor in Mandel's scaling
    stable: Bool[Array, ""]  # Born: the tensor is positive definite and no internal mode has negative curvature
    least_curvature: Float[Array, ""]  # eV/Å², of the atoms inside the cell; infinite with one atom
    fmax: Float[Array, ""]  # eV/Å, the largest force that was left
    stress: Float[Array, "6"]  # GPa, the stress plus the pressure: 0 in equilibrium
    converged: Bool[Array, ""]  # fmax <= config.fmax: else the numbers are those of no relaxed structure


def elastic_tensor(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    config: PropertyConfig = RELAXED,
    *,
    relax_ions: bool = True,
) -> ElasticTensor:
    """Elastic constants ∂σ/∂ε of a relaxed crystal (GPa): second derivatives, without finite strains.

    C_ab = (1/V) (E_ab - E_aq H_qq⁻¹ E_qb), with a and b components of the strain and q the positions, whose response is
    left out with `relax_ions` False (clamped ions). It is evaluated as w_aᵀ H w_b / V along the paths w_a of strain and
    relaxing atoms, stationary in these. Under the pressure P of `config.cell` E + PV stands for E, which gives the
    coefficients of stress and strain (Barron and Klein, Proc. Phys. Soc. 85, 523, 1965). Moduli: Hill (1952); universal
    anisotropy: Ranganathan and Ostoja-Starzewski (2008). Pure; ValueError for what is no crystal.
    """
    minimum.check_crystal(
        system, "An elastic tensor", "For a slab take sheet_stiffness (N/m); a molecule has no elastic constants."
    )
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    return elastic_at(potential, params, relaxed, coordinates.pressure(config.cell), relax_ions)


def elastic_at(
    potential: Potential,
    params: Any,
    relaxed: Minimum,
    pressure: float = 0.0,
    relax_ions: bool = True,
    hessian: Float[Array, "n n"] | None = None,
) -> ElasticTensor:
    """As `elastic_tensor`, of what `at_minimum` gives under a `pressure` (eV/Å³); for several properties of one.

    `hessian` is that of `minimum.hessian` at this pressure, if it is known.
    """
    cell = CellConfig(pressure)
    bends, least = curvatures(potential, params, relaxed, cell, relax_ions, hessian)
    tensor = bends / minimum.real_volume(relaxed.system) / units.GPA
    stress = units.virial_to_stress(relaxed.virial, minimum.real_volume(relaxed.system)) / units.GPA
    rest = units.to_voigt(stress + cell.pressure / units.GPA * jnp.eye(3, dtype=stress.dtype))
    return _moduli(tensor, least, relaxed, jax.lax.stop_gradient(rest))


class SheetStiffness(NamedTuple):
    """In-plane stiffness of one slab or layer."""

    tensor: Float[Array, "3 3"]  # N/m, components xx yy xy of the plane, engineering shear
    stable: Bool[Array, ""]
    least_curvature: Float[Array, ""]  # eV/Å²
    fmax: Float[Array, ""]  # eV/Å
    converged: Bool[Array, ""]


def sheet_stiffness(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    config: PropertyConfig = RELAXED,
    *,
    relax_ions: bool = True,
) -> SheetStiffness:
    """In-plane stiffness (1/A) ∂²E/∂ε∂ε of a relaxed slab (N/m), which needs no thickness.

    The slab is periodic along two lattice vectors in the plane of x and y. As `elastic_tensor` otherwise.
    """
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    cell = CellConfig()
    bends, least = curvatures(potential, params, relaxed, cell, relax_ions)
    a, b = relaxed.system.cell[0], relaxed.system.cell[1]
    area = jnp.linalg.norm(jnp.cross(a, b))
    tensor = bends[jnp.ix_(jnp.array(SHEET), jnp.array(SHEET))] / area / units.GPA / 10  # 1 GPa Å is 0.1 N/m
    stable = (jnp.linalg.eigvalsh(jax.lax.stop_gradient(tensor))[0] > 0) & (least > -SOFT)
    return SheetStiffness(tensor, stable, least, relaxed.fmax, relaxed.converged)


def curvatures(
    potential: Potential,
    params: PyTree,
    relaxed: Minimum,
    cell: CellConfig,
    relax_ions: bool,
    hessian: Float[Array, "n n"] | None = None,
) -> tuple[Float[Array, "6 6"], Float[Array, ""]]:
    """d²(E + PV)/dε_a dε_b (eV) along relaxing paths, and the least curvature of the atoms inside the cell (eV/Å²)."""
    matrix = minimum.hessian(potential, params, relaxed, cell) if hessian is None else hessian
    paths, least = _paths(relaxed, jax.lax.stop_gradient(matrix), relax_ions)
    return _along(potential, params, relaxed, cell, paths, paths @ matrix @ paths.T), least


def _along(
    potential: Potential,
    params: PyTree,
    relaxed: Minimum,
    cell: CellConfig,
    paths: Float[Array, "6 n"],
    values: Float[Array, "6 6"],
) -> Float[Array, "6 6"]:
    """`values`, which are w_aᵀ H w_b along fixed `paths`, with their derivatives by the parameters and by z.

    Of cotangents c they are those of Σ_ab c_ab w_aᵀ H w_b = Σ_k s_k v_kᵀ H v_k, s and v from the eigenvectors of c: six
    second derivatives of E + PV along lines, whose reverse is a far smaller program than that of Hessian products.
    """

    @jax.custom_vjp
    def identity(params, z, relaxed, paths, values):
        return values

    def forward(params, z, relaxed, paths, values):
        return values, (params, z, relaxed, paths)

    def backward(kept, cotangents):
        params, z, relaxed, paths = implicit.undifferentiated(kept)
        sizes, mix = jnp.linalg.eigh((cotangents + cotangents.T) / 2)
        lines = (mix.T @ paths).reshape(-1, *z.shape)

        def total(params, z):
            return jnp.sum(sizes * jax.vmap(lambda v: minimum.bend(potential, params, relaxed, z, cell, v))(lines))

        return *jax.grad(total, argnums=(0, 1))(params, z), None, None, None

    identity.defvjp(forward, backward)
    still = jax.lax.stop_gradient
    return identity(params, relaxed.z, still(relaxed), still(paths), still((values + values.T) / 2))


def _paths(relaxed: Minimum, matrix: Float[Array, "n n"], relax_ions: bool):
    """The six directions of z, a unit of strain each and the atoms' response to it, flat; and the least curvature."""
    still = jax.lax.stop_gradient(relaxed)
    strains = units.from_voigt(jnp.diag(jnp.array([1, 1, 1, 0.5, 0.5, 0.5], still.z.dtype)))
    scaled = minimum.strain_scale(still) * strains
    straight = jnp.zeros((6, *still.z.shape), still.z.dtype).at[:, -3:].set(scaled).reshape(6, -1)
    solved = minimum.inverse(matrix, minimum.within(still, None), SOFT)
    answer = -(straight @ matrix) @ solved.matrix
    return straight + (answer if relax_ions else 0), solved.least


def _moduli(tensor, least, relaxed: Minimum, stress) -> ElasticTensor:
    """Averages of the constants, and flags."""
    diagonal, off, shear = jnp.trace(tensor[:3, :3]), tensor[0, 1] + tensor[0, 2] + tensor[1, 2], tensor[3:, 3:]
    k_voigt = (diagonal + 2 * off) / 9
    g_voigt = (diagonal - off + 3 * jnp.trace(shear)) / 15
    weight = jnp.sqrt(jnp.array([1, 1, 1, 2, 2, 2], tensor.dtype))
    stiffness = jnp.linalg.eigvalsh(jax.lax.stop_gradient(tensor * weight[:, None] * weight))[0]
    s = jnp.linalg.inv(jnp.where(jnp.isfinite(tensor), tensor, jnp.eye(6, dtype=tensor.dtype)))
    k_reuss = 1 / jnp.sum(s[:3, :3])
    s_off = s[0, 1] + s[0, 2] + s[1, 2]
    g_reuss = 15 / (4 * jnp.trace(s[:3, :3]) - 4 * s_off + 3 * jnp.trace(s[3:, 3:]))
    k, g = (k_voigt + k_reuss) / 2, (g_voigt + g_reuss) / 2
    return ElasticTensor(
        tensor=tensor,
        bulk_voigt=k_voigt,
        bulk_reuss=k_reuss,
        bulk=k,
        shear_voigt=g_voigt,
        shear_reuss=g_reuss,
        shear=g,
        young=9 * k * g / (3 * k + g),
        poisson=(3 * k - 2 * g) / (6 * k + 2 * g),
        pugh=k / g,
        anisotropy=5 * g_voigt / g_reuss + k_voigt / k_reuss - 6,
        least_stiffness=stiffness,
        stable=(stiffness > 0) & (least > -SOFT),
        least_curvature=least,
        fmax=relaxed.fmax,
        stress=stress,
        converged=relaxed.converged,
    )
