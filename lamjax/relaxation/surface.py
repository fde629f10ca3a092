"""The energy of a batch of structures as a function of generalised coordinates, and the derivatives of it.

All arrays have a leading axis of structures. Neighbours are constants of every derivative.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from lamjax import numerics
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, predict
from lamjax.relaxation import coordinates
from lamjax.relaxation.coordinates import BatchRows, CellConfig
from lamjax.system import System, volume

FORCE_LIMIT = 1e12  # eV/Å; beyond it squares overflow in float32 and the evaluation counts as not finite


class Evaluation(NamedTuple):
    """Energy and forces at coordinates z."""

    energy: Float[Array, " n_batch"]  # eV
    force: BatchRows  # -∂(E + PV)/∂z, eV/Å
    virial: Float[Array, "n_batch 3 3"]  # eV

    def is_usable(self) -> Bool[Array, " n_batch"]:
        """True if energy and forces are finite numbers that can be squared."""
        return jnp.isfinite(self.energy) & jnp.all(jnp.abs(self.force) < FORCE_LIMIT, axis=(1, 2))


class Cotangents(NamedTuple):
    """Derivatives of a number by what an evaluation depends on."""

    params: Any
    z: BatchRows
    cells: Float[Array, "n_batch 3 3"]  # of the reference


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Surface:
    """E + PV over the coordinates z of `coordinates`, of structures that relax: a pytree of two arrays.

    Methods are pure functions of parameters, coordinates and neighbours.
    """

    reference: System  # leading axis; positions do not count, the cell is the one before the strain
    free: Bool[Array, "n_batch rows 3"]
    potential: Potential = field(metadata={"static": True})
    cell: CellConfig | None = field(metadata={"static": True})

    def evaluate(self, params: PyTree, z: BatchRows, neighbors: Neighbors) -> Evaluation:
        """Energy and forces at z."""
        prediction = predict(self.potential, params, *in_a_row(self.place(z), neighbors))
        n = len(z)
        return self.evaluation(
            z, prediction.energy.reshape(n), prediction.forces.reshape(n, -1, 3), prediction.virial.reshape(n, 3, 3)
        )

    def evaluation(
        self,
        z: BatchRows,
        energy: Float[Array, " n_batch"],
        atomic_forces: Float[Array, "n_batch n_atoms 3"],
        virial: Float[Array, "n_batch 3 3"],
    ) -> Evaluation:
        """The forces on z of a prediction at `place(z)`."""
        force = jax.vmap(lambda z, reference, free, f, v: coordinates.forces(z, reference, free, self.cell, f, v))(
            z, self.reference, self.free, atomic_forces, virial
        )
        return Evaluation(energy, force.astype(z.dtype), virial.astype(z.dtype))

    def energy(self, params: PyTree, z: BatchRows, neighbors: Neighbors) -> Float[Array, " n_batch"]:
        """E (eV) at z, differentiable."""
        system = self.place(z)
        return self.potential.energy(params, *in_a_row(system, neighbors)).reshape(len(z))

    def slope(self, params: PyTree, z: BatchRows, neighbors: Neighbors, along: BatchRows) -> Float[Array, " n_batch"]:
        """v·∇(E + PV) of every structure (eV), v `along`; differentiable with respect to params and z."""
        _, change = jax.jvp(lambda z: self._objective(params, z, neighbors)[0], (z,), (along,))
        return change

    def hessian_product(self, params: PyTree, z: BatchRows, neighbors: Neighbors, v: BatchRows) -> BatchRows:
        """H v, H = P ∂²(E + PV)/∂z² P, P the projection on what may change (eV/Å² times the unit of v)."""
        along = self.project(v)
        change = jax.grad(lambda z: jnp.sum(self.slope(params, z, neighbors, along)))(z)
        return self.project(change)

    def pullback(
        self,
        params: PyTree,
        z: BatchRows,
        neighbors: Neighbors,
        cotangent: Evaluation,
        wanted: tuple[str, ...] = ("params", "cells"),
    ) -> Cotangents:
        """Cotangents of params (summed), z and the reference's cells from those of energy and force (of `evaluate`).

        The pullback of a force cotangent f is -∇(f·∇E), here the forward derivative of a reverse one: exact, for the
        Hessian is symmetric. Structures without a cotangent contribute nothing, not even a NaN; what is not `wanted`
        is 0.
        """
        used = jnp.any(cotangent.force != 0, axis=(1, 2)) | (cotangent.energy != 0)
        surface, neighbors = self._without(~used, neighbors)
        z = jnp.where(used[:, None, None], z, 0)
        along = -surface.project(cotangent.force)
        constants = {"params": params, "cells": self.reference.cell}
        variables = {name: constants[name] for name in wanted}

        def total(variables: dict, weight: Float[Array, " n_batch"]) -> Float[Array, ""]:
            at = constants | variables
            work, energy = surface.with_cells(at["cells"])._objective(at["params"], variables["z"], neighbors)
            return jnp.sum(work) + jnp.sum(weight * energy)

        weight = cotangent.energy.astype(numerics.widest_float())
        _, change = jax.jvp(
            lambda z, weight: jax.grad(total)(variables | {"z": z}, weight),
            (z, jnp.zeros_like(weight)),
            (along, weight),
        )
        change = jax.tree.map(jnp.zeros_like, constants) | change
        masked = lambda x: jnp.where(used[:, None, None], x, 0)  # noqa: E731
        return Cotangents(change["params"], masked(change["z"]), masked(change["cells"]))

    def energy_slope(self, z: BatchRows) -> BatchRows:
        """∂E/∂z at a minimum of E + PV: the slope that the pressure holds up (eV/Å)."""
        pressure = coordinates.pressure(self.cell)
        if not pressure:
            return jnp.zeros_like(z)
        return -pressure * jax.grad(lambda z: jnp.sum(volume(self.place(z))))(z)

    def project(self, v: BatchRows) -> BatchRows:
        """Changes restricted to what may change."""
        return jax.vmap(lambda v, reference, free: coordinates.project(v, reference, free, self.cell))(
            v, self.reference, self.free
        )

    def start(self) -> BatchRows:
        """The coordinates of the references themselves."""
        return jax.vmap(coordinates.start)(self.reference)

    def place(self, z: BatchRows) -> System:
        """The structures at z."""
        return jax.vmap(coordinates.place)(z, self.reference)

    def atomic_forces(self, z: BatchRows, force: BatchRows) -> Float[Array, "n_batch n_atoms 3"]:
        """Forces on atoms of forces on z (eV/Å)."""
        return jax.vmap(coordinates.atomic_forces)(z, force, self.reference)

    def largest(self, force: BatchRows) -> Float[Array, " n_batch"]:
        """The largest force of every structure, on an atom or, scaled as ASE does, on the cell (eV/Å)."""
        return jax.vmap(coordinates.largest)(force, self.reference)

    def with_cells(self, cells: Float[Array, "n_batch 3 3"]) -> "Surface":
        """The surface over these cells (before the strain)."""
        return dataclasses.replace(self, reference=self.reference._replace(cell=cells))

    def _objective(
        self, params: PyTree, z: BatchRows, neighbors: Neighbors
    ) -> tuple[Float[Array, " n_batch"], Float[Array, " n_batch"]]:
        """E + PV and E of every structure (eV)."""
        energy = self.energy(params, z, neighbors)
        pressure = coordinates.pressure(self.cell)
        return energy + (pressure * volume(self.place(z)) if pressure else 0.0), energy

    def _without(self, unused: Bool[Array, " n_batch"], neighbors: Neighbors) -> tuple["Surface", Neighbors]:
        """Unused structures become padding without neighbours: no NaN reaches the others' parameters."""
        mask = lambda pairs: pairs & ~unused[:, None, None]  # noqa: E731
        numbers = jnp.where(unused[:, None], 0, self.reference.numbers)
        surface = dataclasses.replace(self, reference=self.reference._replace(numbers=numbers))
        return surface, neighbors._replace(mask=mask(neighbors.mask), inner=tuple(map(mask, neighbors.inner)))


def over(
    potential: Potential, system: System, fixed: Bool[Array, "n_batch n_atoms 3"] | None, cell: CellConfig | None
) -> Surface:
    """The surface of a potential whose reference is the system itself (leading axis)."""
    if fixed is None:
        free = jax.vmap(lambda s: coordinates.free(s, None, cell))(system)
    else:
        free = jax.vmap(lambda s, f: coordinates.free(s, f, cell))(system, jnp.asarray(fixed))
    return Surface(system, free, _hashable(potential), cell)


def _hashable(potential: Potential) -> Potential:
    """The same functions, in a form that compiled programs can be told apart by."""
    try:
        hash(potential)
    except TypeError:
        elements = None if potential.elements is None else tuple(potential.elements)
        shells = tuple(potential.shells)
        return potential._replace(config=repr(potential.config), shells=shells, elements=elements)
    return potential


def cached(evaluation: Evaluation, surface: Surface, params: PyTree, z: BatchRows, neighbors: Neighbors) -> Evaluation:
    """An evaluation at z that has been made before, with its derivatives by params, z and the reference's cells.

    Nothing is evaluated but the derivative (`Surface.pullback`). A cotangent that is not finite counts as 0, and that
    of the virial is left out.
    """
    return _cached((params, surface.reference.cell, z), evaluation, surface, neighbors)


def _cached_forward(variables: Any, evaluation: Any, surface: Any, neighbors: Any) -> tuple[Evaluation, tuple]:
    params, cells, _ = variables
    wanted = {name: () for name, part in (("params", params), ("cells", cells)) if is_perturbed(part)}
    variables, evaluation, surface, neighbors = values((variables, evaluation, surface, neighbors))
    return evaluation, (wanted, variables, surface, neighbors)


def _cached_backward(residuals: tuple, cotangent: Evaluation) -> tuple:
    wanted, (params, cells, z), surface, neighbors = residuals
    on = instantiated(cotangent)
    usable = jnp.all(jnp.isfinite(on.force), axis=(1, 2)) & jnp.isfinite(on.energy)
    on = on._replace(energy=jnp.where(usable, on.energy, 0), force=jnp.where(usable[:, None, None], on.force, 0))
    change = surface.with_cells(cells).pullback(params, z, neighbors, on, tuple(wanted))
    return (change.params, change.cells, change.z), None, None, None


@jax.custom_vjp
def _cached(variables: tuple, evaluation: Evaluation, surface: Surface, neighbors: Neighbors) -> Evaluation:
    return evaluation


_cached.defvjp(_cached_forward, _cached_backward, symbolic_zeros=True)


def is_perturbed(tree: Any) -> bool:
    """True if a derivative is wanted by an argument that a custom_vjp with symbolic zeros gives its forward function.

    Known when the program is made.
    """
    return any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_primal))


def values(tree: Any) -> Any:
    """Plain arrays of such arguments."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)


def instantiated(cotangent: Any) -> Any:
    """Zeros in the place of symbolic ones."""
    is_symbolic = lambda x: isinstance(x, jax.custom_derivatives.SymbolicZero)  # noqa: E731

    def zeros(x: Any) -> Any:
        if not is_symbolic(x):
            return x
        if x.dtype == jax.dtypes.float0:
            return np.zeros(x.shape, jax.dtypes.float0)
        return jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(zeros, cotangent, is_leaf=is_symbolic)


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


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
