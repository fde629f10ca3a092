"""The energy over generalised coordinates, of a batch of structures: forces, and derivatives of functionals of them.

All arrays have a leading axis of structures. Neighbours are constants of every derivative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lamjax import numerics
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, predict
from lamjax.relaxation import coordinates
from lamjax.relaxation.coordinates import CellConfig
from lamjax.system import System, volume

FORCE_LIMIT = 1e12  # eV/Å; beyond it squares overflow in float32 and the evaluation counts as not finite


class Landscape(NamedTuple):
    """What is constant while structures relax."""

    reference: System  # positions do not count, the cell is the one before the strain
    free: Bool[Array, "n_batch rows 3"]


class Evaluation(NamedTuple):
    """The potential at coordinates z."""

    energy: Float[Array, " n_batch"]  # eV
    force: Float[Array, "n_batch rows 3"]  # -∂(E + PV)/∂z, eV/Å
    virial: Float[Array, "n_batch 3 3"]  # eV


def over(system: System, fixed: Bool[Array, "n_batch n_atoms 3"] | None, cell: CellConfig | None) -> Landscape:
    """The landscape whose reference is the system itself."""
    if fixed is None:
        return Landscape(system, jax.vmap(lambda s: coordinates.free(s, None, cell))(system))
    return Landscape(system, jax.vmap(lambda s, f: coordinates.free(s, f, cell))(system, jnp.asarray(fixed)))


def evaluate(potential: Potential, params, there: Landscape, z, neighbors: Neighbors, cell) -> Evaluation:
    """Energy and forces at z."""
    here = place(there, z)
    said = predict(potential, params, *in_a_row(here, neighbors))
    n, dtype = len(z), z.dtype
    atomic, virial = said.forces.reshape(n, -1, 3), said.virial.reshape(n, 3, 3)
    force = jax.vmap(lambda z, reference, free, f, v: coordinates.forces(z, reference, free, cell, f, v))(
        z, there.reference, there.free, atomic, virial
    )
    return Evaluation(said.energy.reshape(n), force.astype(dtype), virial.astype(dtype))


def is_usable(said: Evaluation) -> Bool[Array, " n_batch"]:
    """True if energy and forces are finite numbers that can be squared."""
    return jnp.isfinite(said.energy) & jnp.all(jnp.abs(said.force) < FORCE_LIMIT, axis=(1, 2))


def pull(
    potential: Potential,
    params,
    there: Landscape,
    z,
    neighbors,
    cell,
    on_energy,
    on_force,
    usable,
    by_params: bool = True,
    by_cells: bool = True,
) -> tuple:
    """What cotangents of energy and force (of `evaluate`) are for params (summed), z and the reference's cell.

    The pullback of a force cotangent f is -∇(f·∇E), here the forward derivative of a reverse one: exact, for the
    Hessian is symmetric. Structures that are not `usable` contribute nothing; what is not asked for is 0.
    """
    there, neighbors = _without(there, neighbors, usable)
    z = jnp.where(usable[:, None, None], z, 0)
    on_energy, on_force = jnp.where(usable, on_energy, 0), jnp.where(usable[:, None, None], on_force, 0)
    along = -project(there, on_force, cell)

    def total(asked: dict, weight):
        at = {"params": params, "cells": there.reference.cell} | asked
        work, energy = _objective(potential, at["params"], with_cells(there, at["cells"]), asked["z"], neighbors, cell)
        return jnp.sum(work) + jnp.sum(weight * energy)

    others = {"params": params, "cells": there.reference.cell}
    asked = {name: others[name] for name, wanted in (("params", by_params), ("cells", by_cells)) if wanted}
    weight = on_energy.astype(numerics.widest_float())
    _, found = jax.jvp(
        lambda z, weight: jax.grad(total)(asked | {"z": z}, weight), (z, jnp.zeros_like(weight)), (along, weight)
    )
    found = jax.tree.map(jnp.zeros_like, others) | found
    kept = lambda x: jnp.where(usable[:, None, None], x, 0)  # noqa: E731
    return found["params"], kept(found["z"]), kept(found["cells"])


def slope(potential: Potential, params, there: Landscape, z, neighbors, cell, along) -> Float[Array, " n_batch"]:
    """v·∇(E + PV) of every structure (eV), differentiable with respect to params and z."""
    _, change = jax.jvp(lambda z: _objective(potential, params, there, z, neighbors, cell)[0], (z,), (along,))
    return change


def hessian_product(potential: Potential, params, there: Landscape, z, neighbors, cell):
    """v -> H v, H = P ∂²(E + PV)/∂z² P, P the projection on what may change (eV/Å² times the unit of v)."""

    def product(v):
        along = project(there, v, cell)
        change = jax.grad(lambda z: jnp.sum(slope(potential, params, there, z, neighbors, cell, along)))(z)
        return project(there, change, cell)

    return product


def energy(potential: Potential, params, there: Landscape, z, neighbors) -> Float[Array, " n_batch"]:
    """E (eV) at z, differentiable."""
    return _objective(potential, params, there, z, neighbors, None)[1]


def energy_slope(there: Landscape, z, cell: CellConfig | None) -> Float[Array, "n_batch rows 3"]:
    """∂E/∂z at a minimum of E + PV: the slope that the pressure holds up (eV/Å)."""
    pressure = coordinates.pressure(cell)
    if not pressure:
        return jnp.zeros_like(z)
    return -pressure * jax.grad(lambda z: jnp.sum(volume(place(there, z))))(z)


def project(there: Landscape, v, cell: CellConfig | None) -> Float[Array, "n_batch rows 3"]:
    """Changes restricted to what may change."""
    return jax.vmap(lambda v, reference, free: coordinates.project(v, reference, free, cell))(
        v, there.reference, there.free
    )


def place(there: Landscape, z) -> System:
    """The structures at z."""
    return jax.vmap(coordinates.place)(z, there.reference)


def atomic_forces(there: Landscape, z, force) -> Float[Array, "n_batch n_atoms 3"]:
    """Forces on atoms of forces on z (eV/Å)."""
    return jax.vmap(coordinates.atomic_forces)(z, force, there.reference)


def with_cells(there: Landscape, cells: Float[Array, "n_batch 3 3"]) -> Landscape:
    """The landscape over these cells (before the strain)."""
    return there._replace(reference=there.reference._replace(cell=cells))


def largest(there: Landscape, force) -> Float[Array, " n_batch"]:
    """The largest force of every structure, on an atom or, scaled as ASE does, on the cell (eV/Å)."""
    return jax.vmap(coordinates.largest)(force, there.reference)


def _objective(potential, params, there: Landscape, z, neighbors, cell):
    """E + PV and E of every structure (eV)."""
    here = place(there, z)
    energy = potential.energy(params, *in_a_row(here, neighbors)).reshape(len(z))
    pressure = coordinates.pressure(cell)
    return energy + (pressure * volume(here) if pressure else 0.0), energy


def in_a_row(systems: System, neighbors: Neighbors) -> tuple[System, Neighbors]:
    """The structures of a batch in one list of atoms: larger products than under vmap, and no copies between them."""
    n_batch, n_atoms = systems.numbers.shape
    if n_batch == 1:
        return jax.tree.map(lambda x: x[0], (systems, neighbors))
    row = lambda x: None if x is None else x.reshape(n_batch * n_atoms, *x.shape[2:])  # noqa: E731
    first = n_atoms * jnp.arange(n_batch, dtype=neighbors.indices.dtype)
    return systems._replace(
        positions=row(systems.positions),
        numbers=row(systems.numbers),
        aparam=row(systems.aparam),
        structure=jnp.repeat(jnp.arange(n_batch), n_atoms),
    ), neighbors._replace(
        indices=row(neighbors.indices + first[:, None, None]),
        images=row(neighbors.images),
        mask=row(neighbors.mask),
        inner=tuple(row(mask) for mask in neighbors.inner),
    )


def _without(there: Landscape, neighbors: Neighbors, usable) -> tuple[Landscape, Neighbors]:
    """Structures that are not usable become padding without neighbours: no NaN reaches the others' parameters."""
    alone = lambda mask: mask & usable[:, None, None]  # noqa: E731
    numbers = jnp.where(usable[:, None], there.reference.numbers, 0)
    there = there._replace(reference=there.reference._replace(numbers=numbers))
    return there, neighbors._replace(mask=alone(neighbors.mask), inner=tuple(map(alone, neighbors.inner)))
