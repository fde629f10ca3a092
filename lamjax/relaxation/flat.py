"""The potential of a batch of structures of many sizes, laid behind one another in lists of atoms.

Nothing is computed for padded atoms and for structures that stand still, whatever the shape of the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lamjax import numerics
from lamjax import system as systems
from lamjax.potential import predict
from lamjax.relaxation import coordinates, landscape
from lamjax.relaxation import lists as listing
from lamjax.relaxation.coordinates import CellConfig
from lamjax.relaxation.landscape import Evaluation, Landscape
from lamjax.relaxation.lists import Lists, Places
from lamjax.relaxation.relax import Said
from lamjax.system import System


def evaluate(
    potential,
    params,
    there: Landscape,
    z: Float[Array, "n_slots rows 3"],
    lists: Lists,
    wanted: Bool[Array, " n_slots"],
    capacities: tuple[int, ...],
    n_flat: int,
    cell: CellConfig | None,
) -> Said:
    """What the potential says of the wanted structures at z, as `relax` asks it for all; of the others anything.

    As many lists of `n_flat` atoms as they fill are evaluated, one after another.
    """
    here = landscape.place(there, z)
    sizes = jnp.where(wanted, jnp.sum(systems.real(here), axis=1), 0)
    starts = listing.laid(sizes, n_flat)

    def one(k, total):
        where = listing.places(starts, sizes, k, n_flat)
        together = _together(here, where)
        neighbors, found = listing.narrow(lists.verlet, together, where, potential.shells, capacities)
        said = predict(potential, params, together, neighbors)
        forces = jnp.where(where.real[:, None], said.forces, 0)
        energy, before, virial, most = total
        before = before.at[where.structure, where.atom].add(forces)
        return energy + said.energy, before, virial + said.virial, jnp.maximum(most, found)

    n_lists = (jnp.max(starts + sizes) + n_flat - 1) // n_flat
    dtype = z.dtype
    nothing = (
        jnp.zeros(len(z), numerics.widest_float()),
        jnp.zeros_like(here.positions),
        jnp.zeros((len(z), 3, 3), dtype),
        jnp.zeros((len(z), len(potential.shells)), jnp.int32),
    )
    energy, forces, virial, found = jax.lax.fori_loop(0, n_lists, one, nothing)
    force = jax.vmap(lambda z, reference, free, f, v: coordinates.forces(z, reference, free, cell, f, v))(
        z, there.reference, there.free, forces, virial
    )
    evaluation = Evaluation(energy, force.astype(dtype), virial)
    return Said(
        evaluation,
        landscape.is_usable(evaluation),
        *listing.flags(lists.verlet, found, potential.shells, capacities),
    )


def _together(batch: System, where: Places) -> System:
    """The atoms of a list."""
    at = where.structure, where.atom
    return batch._replace(
        positions=batch.positions[at],
        numbers=jnp.where(where.real, batch.numbers[at], 0),
        aparam=None if batch.aparam is None else batch.aparam[at],
        structure=where.structure,
    )
