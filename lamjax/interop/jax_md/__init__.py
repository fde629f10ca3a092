"""jax-md: lamjax's potentials for its routines, and its energy functions as potentials."""

from lamjax.interop.jax_md.from_jax_md import EnergyFnConfig, from_energy_fn
from lamjax.interop.jax_md.to_jax_md import NeighborList, energy_neighbor_list

__all__ = ["EnergyFnConfig", "NeighborList", "energy_neighbor_list", "from_energy_fn"]
