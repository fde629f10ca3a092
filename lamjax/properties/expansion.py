"""Volume dependence of frequencies, and the thermal expansion from it (quasi-harmonic)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lamjax import units
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum, vibrations
from lamjax.properties.minimum import RELAXED, PropertyConfig
from lamjax.properties.supercells import Supercell
from lamjax.properties.volumes import volume_path
from lamjax.system import System


class Gruneisen(NamedTuple):
    """Grüneisen parameters of all modes at wave vectors."""

    qpoints: Float[Array, "n_q 3"]
    frequencies: Float[Array, "n_q n_modes"]  # THz
    parameters: Float[Array, "n_q n_modes"]  # -d ln ω/d ln V; 0 for translations
    stable: Bool[Array, ""]  # no frequency is imaginary
    converged: Bool[Array, ""]


def gruneisen(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    cells: Supercell,
    qpoints: Float[Array, "n_q 3"],
    config: PropertyConfig = RELAXED,
) -> Gruneisen:
    """γ = -d ln ω/d ln V of every mode, with atoms and shape of the cell relaxing as the volume changes.

    One derivative of the exact force constants along that way, no second and third volume. Of modes of equal frequency
    the mean is meant.
    """
    minimum.check_crystal(system, "A Grüneisen parameter")
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    direction, _ = volume_path(potential, params, relaxed, True)

    def at(t):
        placed = minimum.place(relaxed, relaxed.z + t * direction)
        constants, _ = vibrations.constants_of(potential, params, placed, cells)
        return vibrations.squared_frequencies(constants, system, cells, qpoints)

    t = jnp.zeros((), relaxed.z.dtype)
    squares, change = jax.jvp(at, (t,), (jnp.ones_like(t),))
    values = vibrations.in_thz(squares)
    moving = jnp.abs(values) > vibrations.SILENT
    parameters = jnp.where(moving, -change / (2 * jnp.where(moving, squares, 1)), 0)
    stable = jax.lax.stop_gradient(jnp.min(values)) > -vibrations.IMAGINARY
    return Gruneisen(jnp.asarray(qpoints), values, parameters, stable, relaxed.converged)


def thermal_expansion(
    harmonic: Gruneisen, volume: Float[Array, ""], bulk_modulus: Float[Array, ""], temperatures: Float[Array, " n_t"]
) -> Float[Array, " n_t"]:
    """α = d ln V/dT = Σ γ c/(V B) (1/K) of one cell: `volume` in Å³, `bulk_modulus` in GPa, c the heat of each mode.

    The quasi-harmonic approximation to first order about the volume of least energy (Grüneisen).
    """
    modes = harmonic.frequencies
    kept = modes > vibrations.SILENT
    quanta = vibrations.QUANTUM * jnp.where(kept, modes, 1)

    def at(t):
        x = quanta / (units.KB * jnp.where(t > 0, t, 1))
        fall = jnp.exp(-x)
        heat = jnp.where(kept & (t > 0), units.KB * x**2 * fall / (1 - fall) ** 2, 0)
        return jnp.sum(harmonic.parameters * heat) / modes.shape[0]

    return jax.vmap(at)(jnp.atleast_1d(jnp.asarray(temperatures, modes.dtype))) / (volume * bulk_modulus * units.GPA)
