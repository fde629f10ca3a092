"""Lattice constants, volume and density of the relaxed crystal."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from jaxtyping import Array, Bool, Float

from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import RELAXED, Minimum, PropertyConfig
from lamjax.system import System, masses, volume

DENSITY = ase_units._amu * 1e3 / 1e-24  # g/cm³ of one amu/Å³: 1.66054


class Lattice(NamedTuple):
    """The relaxed cell."""

    cell: Float[Array, "3 3"]  # Å, rows are lattice vectors
    lengths: Float[Array, "3"]  # Å, |a| |b| |c|
    angles: Float[Array, "3"]  # degrees, between b and c, a and c, a and b
    volume: Float[Array, ""]  # Å³
    density: Float[Array, ""]  # g/cm³
    energy: Float[Array, ""]  # eV
    fmax: Float[Array, ""]  # eV/Å
    converged: Bool[Array, ""]


def lattice(
    potential: Potential, params: Any, system: System, neighbors: Neighbors, config: PropertyConfig = RELAXED
) -> Lattice:
    """Cell, lengths, angles, volume and density of a relaxed crystal, with their derivatives by the parameters."""
    minimum.check_crystal(system, "A lattice constant")
    return lattice_at(minimum.at_minimum(potential, params, system, neighbors, config))


def lattice_at(relaxed: Minimum) -> Lattice:
    """As `lattice`, of what `at_minimum` gives: for several properties of one crystal."""
    cell, size = relaxed.system.cell, volume(relaxed.system)
    lengths = jnp.linalg.norm(cell, axis=1)
    unit = cell / lengths[:, None]
    cosines = jnp.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    density = DENSITY * jnp.sum(jax.lax.stop_gradient(masses(relaxed.system))) / size
    angles = jnp.arccos(cosines) * (180 / np.pi)
    return Lattice(cell, lengths, angles, size, density, relaxed.energy, relaxed.fmax, relaxed.converged)
