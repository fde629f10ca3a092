"""The potential of a batch of structures of many sizes, laid behind one another in lists of atoms.

Nothing is computed for padded atoms and for structures that stand still, whatever the shape of the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from lamjax import numerics
from lamjax import system as systems
from lamjax.potential import predict
from lamjax.relaxation import lists as listing
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.layouts import Evaluated
from lamjax.relaxation.lists import Lists, Places
from lamjax.relaxation.surface import Surface
from lamjax.system import System


class Flat(NamedTuple):
    """The structures of a batch that are active behind one another in lists of `n_flat` atoms, as many as they fill."""

    capacities: tuple[int, ...]
    skin: float  # Å
    n_flat: int

    def refresh(self, surface: Surface, lists: Lists, z: BatchRows) -> Lists:
        """The lists, those of structures that have moved too far searched anew."""
        return listing.refresh(lists, surface.place(z), surface.potential.shells, self.skin)

    def evaluate(
        self, surface: Surface, params: PyTree, z: BatchRows, lists: Lists, active: Bool[Array, " n_batch"]
    ) -> Evaluated:
        """Energy, forces and flags of the structures that are active, one list of atoms after another."""
        batch, shells = surface.place(z), surface.potential.shells
        sizes = jnp.where(active, jnp.sum(systems.real(batch), axis=1), 0)
        starts = listing.laid(sizes, self.n_flat)

        def one(k, total):
            where = listing.places(starts, sizes, k, self.n_flat)
            together = _together(batch, where)
            neighbors, n_neighbors = listing.narrow(lists.verlet, together, where, shells, self.capacities)
            prediction = predict(surface.potential, params, together, neighbors)
            forces = jnp.where(where.real[:, None], prediction.forces, 0)
            energy, before, virial, most = total
            before = before.at[where.structure, where.atom].add(forces)
            return energy + prediction.energy, before, virial + prediction.virial, jnp.maximum(most, n_neighbors)

        n_lists = (jnp.max(starts + sizes) + self.n_flat - 1) // self.n_flat
        nothing = (
            jnp.zeros(len(z), numerics.widest_float()),
            jnp.zeros_like(batch.positions),
            jnp.zeros((len(z), 3, 3), z.dtype),
            jnp.zeros((len(z), len(shells)), jnp.int32),
        )
        energy, forces, virial, n_neighbors = jax.lax.fori_loop(0, n_lists, one, nothing)
        evaluation = surface.evaluation(z, energy, forces, virial)
        flags = listing.flags(lists.verlet, n_neighbors, shells, self.capacities)
        return Evaluated(evaluation, evaluation.is_usable(), *flags)


def _together(batch: System, where: Places) -> System:
    """The atoms of a list."""
    at = where.structure, where.atom
    return batch._replace(
        positions=batch.positions[at],
        numbers=jnp.where(where.real, batch.numbers[at], 0),
        aparam=None if batch.aparam is None else batch.aparam[at],
        structure=where.structure,
    )
