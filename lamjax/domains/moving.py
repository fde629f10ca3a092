"""Evaluation of a structure that moves, on one device or over domains, by one set of functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from lamjax import numerics
from lamjax import system as systems
from lamjax.domains import lists as divided
from lamjax.domains.division import Domains
from lamjax.domains.lists import ALL, EACH, DomainLists, DomainShapes
from lamjax.neighbors import Neighbors, grid, verlet
from lamjax.potential import Potential, atomic_energies, check_memory, derivatives, predict
from lamjax.system import System

AnyShapes = grid.Shapes | DomainShapes  # static


class ListStatus(NamedTuple):
    """Largest numbers of neighbours and flags of the lists of an evaluation."""

    largest_counts: Int[Array, " n_shells"]  # the largest number of an atom within each shell
    overflow: Bool[Array, ""]  # some are missing
    truncated: Bool[Array, ""]  # the model itself drops some


class Evaluator(NamedTuple):
    """Pure functions; `lists` and `shapes` are theirs, of whatever kind."""

    shapes: Callable  # (system, grid.Spare, least=None) -> shapes, hashable; on the host
    blank: Callable  # (system, shapes) -> lists that want to be searched; on the host
    search: Callable  # (lists, system, skin, shapes) -> lists, the fullest of what `rooms` counts
    rooms: Callable  # shapes -> (n,) how much of each there is room for
    is_stale: Callable  # (lists, system) -> whether they must be searched anew
    look: Callable  # (lists, system, shapes) -> ListStatus
    energy: Callable  # (params, system, lists, shapes) -> eV, ListStatus
    predict: Callable  # (params, system, lists, shapes) -> Prediction, ListStatus


def evaluator(potential: Potential, domains: Domains | None = None) -> Evaluator:
    """The functions of a potential on one device, or over domains."""
    return _on_one(potential) if domains is None else _over(potential, domains)


def _on_one(potential: Potential) -> Evaluator:
    shells = potential.shells

    def shapes(system: System, spare: grid.Spare, least: grid.Shapes | None = None) -> grid.Shapes:
        return grid.shapes(system, shells, spare, least)

    def blank(system: System, shapes: grid.Shapes) -> verlet.Verlet:
        return verlet.blank(system, shapes.width, jnp.zeros((0, 3), jnp.int32), shells)

    def search(lists: verlet.Verlet, system: System, skin: float, shapes: grid.Shapes) -> tuple:
        new, fullest = grid.search(lists, system, shells, skin, shapes.grid)
        return new, fullest[None]

    def is_stale(lists: verlet.Verlet, system: System) -> Array:
        return verlet.is_stale(lists, system, shells)

    def narrow(lists: verlet.Verlet, system: System, shapes: grid.Shapes) -> Neighbors:
        return verlet.narrow(lists, system, shells, shapes.capacities)

    def look(lists: verlet.Verlet, system: System, shapes: grid.Shapes) -> ListStatus:
        return _status(narrow(lists, system, shapes))

    def energy(params: PyTree, system: System, lists: verlet.Verlet, shapes: grid.Shapes) -> tuple[Array, ListStatus]:
        neighbors = narrow(lists, system, shapes)
        return potential.energy(params, system, neighbors), _status(neighbors)

    def predicted(params: PyTree, system: System, lists: verlet.Verlet, shapes: grid.Shapes) -> tuple[Any, ListStatus]:
        neighbors = narrow(lists, system, shapes)
        return predict(potential, params, system, neighbors), _status(neighbors)

    rooms = lambda shapes: np.array([shapes.grid.capacity])  # noqa: E731
    return Evaluator(shapes, blank, search, rooms, is_stale, look, energy, predicted)


def _over(potential: Potential, domains: Domains) -> Evaluator:
    def shapes(system: System, spare: grid.Spare, least: DomainShapes | None = None) -> DomainShapes:
        return divided.shapes(potential, domains, system, spare, least)

    def blank(system: System, shapes: DomainShapes) -> DomainLists:
        return divided.blank(system, domains, potential.shells, shapes)

    def search(lists: DomainLists, system: System, skin: float, shapes: DomainShapes) -> tuple:
        return divided.search(lists, system, potential, domains, skin, shapes)

    def is_stale(lists: DomainLists, system: System) -> Array:
        return divided.is_stale(lists, system, potential)

    def look(lists: DomainLists, system: System, shapes: DomainShapes) -> ListStatus:
        return _over_domains(potential, None, system, lists, domains, shapes)[1]

    def atomic(params: PyTree, system: System, lists: DomainLists, shapes: DomainShapes) -> tuple[Array, ListStatus]:
        return _over_domains(potential, params, system, lists, domains, shapes)

    def energy(params: PyTree, system: System, lists: DomainLists, shapes: DomainShapes) -> tuple[Array, ListStatus]:
        energies, status = atomic(params, system, lists, shapes)
        return systems.of_structures(system, energies.astype(numerics.widest_float())), status

    def predicted(params: PyTree, system: System, lists: DomainLists, shapes: DomainShapes) -> tuple[Any, ListStatus]:
        check_memory(potential, params, shapes.n_atoms, shapes.capacities)
        return derivatives(lambda strained: atomic(params, strained, lists, shapes), system)

    rooms = lambda shapes: np.array([shapes.grid.capacity, shapes.n_atoms])  # noqa: E731
    return Evaluator(shapes, blank, search, rooms, is_stale, look, energy, predicted)


def _over_domains(
    potential: Potential, params: PyTree, system: System, lists: DomainLists, domains: Domains, shapes: DomainShapes
) -> tuple[Array, ListStatus]:
    """The energies (n_atoms,) of all atoms, each from the domain that owns it (zeros where there are no params)."""
    capacities = shapes.capacities
    first = getattr(potential.atomic_energies, "finite_alone", False)  # without neighbours, it could not be shown

    def of_domain(params: PyTree, system: System, *parts: Any) -> tuple:
        near, atoms, images, number = jax.tree.map(lambda x: x[0], parts)
        cluster = divided.members(system, domains, atoms, images, number, first)
        neighbors = verlet.narrow(near, cluster, potential.shells, capacities)
        slot, energies = jnp.arange(shapes.n_atoms), jnp.zeros(shapes.n_atoms)
        if params is not None:
            energies = atomic_energies(potential, params, cluster, neighbors)
        own = jnp.where((slot > 0) & (slot <= number[0]), energies, 0)
        of_all = jnp.zeros(system.n_atoms, own.dtype).at[atoms].add(own)
        return jax.tree.map(lambda x: x[None], (of_all, _status(neighbors)))

    specs = (ALL, ALL, EACH, EACH, EACH, EACH)
    run = jax.shard_map(of_domain, mesh=domains.mesh, in_specs=specs, out_specs=EACH, check_vma=False)
    energies, status = run(params, system, lists.verlet, lists.atoms, lists.images, lists.number)
    return jnp.sum(energies, axis=0), ListStatus(
        jnp.max(status.largest_counts, axis=0), jnp.any(status.overflow), jnp.any(status.truncated)
    )


def _status(neighbors: Neighbors) -> ListStatus:
    return ListStatus(neighbors.largest_counts, neighbors.overflow, neighbors.truncated)
