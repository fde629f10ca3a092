"""Energies, forces and virial over domains, each evaluated on its own device with the ordinary potential."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lamjax import system as systems
from lamjax.arguments import ArgumentError, expect
from lamjax.domains.division import Domains, divide
from lamjax.domains.lists import DomainLists, DomainShapes
from lamjax.domains.moving import evaluator
from lamjax.neighbors.grid import Spare
from lamjax.neighbors.types import Shell, named
from lamjax.potential import Potential, Prediction, check_elements, check_potential
from lamjax.system import System

SKIN = 1.0  # Å
HEADROOM = 1.1  # of all arrays, relative to what is there when they are made


@jax.tree_util.register_dataclass  # no NamedTuple, since its shapes are static
@dataclass(frozen=True)
class DividedNeighbors:
    """A structure over several devices: the atoms of each domain, its halo, and the neighbours of all of them."""

    lists: DomainLists
    domains: Domains = field(metadata={"static": True})
    shapes: DomainShapes = field(metadata={"static": True})
    shells: tuple[Shell, ...] = field(metadata={"static": True})
    skin: float = field(metadata={"static": True})

    @property
    def overflow(self) -> Array:
        """True if atoms or neighbours have no room: energies are NaN then."""
        return ~self.lists.usable

    @property
    def capacities(self) -> tuple[int, ...]:
        """Raises ArgumentError: functions for one device read the capacities."""
        raise ArgumentError(
            "Neighbours over domains are evaluated by domains.predict and domains.energy of the same arguments; "
            "lamjax.predict, potential.energy and relaxations take those of lamjax.allocate(potential, system)."
        )


def allocate(
    potential: Potential,
    system: System,
    domains: Domains | Sequence[int],
    skin: float = SKIN,
    headroom: float = HEADROOM,
) -> DividedNeighbors:
    """One structure over several devices: what `predict` and `energy` of this module take. On the host.

    `domains` are those of `divide`, or how many there shall be along each lattice vector, such as (2, 2, 1). Each
    device evaluates the atoms of its own domain; of the others it sees those within the potential's
    `receptive_field`, the halo, and nothing else. A cell of any size and shape will do, but small domains are mostly
    halo. Arrays have room for `headroom` times what is there now. Raises ValueError for unknown elements, a potential
    whose `receptive_field` is not known, and fewer devices than domains.
    """
    check_potential(potential, "domains.allocate")
    systems.check_single(system, "A division into domains")
    host = systems.as_jax_casts(jax.tree.map(np.asarray, systems.as_system(system)))
    check_elements(potential, host)
    domains = domains if isinstance(domains, Domains) else divide(domains)
    over = evaluator(potential, domains)
    shapes = over.shapes(host, Spare(skin, headroom))
    blank = DividedNeighbors(over.blank(host, shapes), domains, shapes, potential.shells, float(skin))
    divided = jax.jit(lambda n, s: update(potential, n, s))(blank, host)
    check(divided)
    return divided


def update(potential: Potential, neighbors: DividedNeighbors, system: System) -> DividedNeighbors:
    """The same where no atom (or the cell) has moved by half the skin; else atoms and neighbours are found anew."""
    expect(neighbors, DividedNeighbors, "domains.update takes the neighbours second", _REMEDY)
    if neighbors.shells != potential.shells:
        raise ValueError(
            f"The neighbours were allocated for {named(neighbors.shells)}, the potential looks at "
            f"{named(potential.shells)}. {_REMEDY}"
        )
    over, still = evaluator(potential, neighbors.domains), jax.lax.stop_gradient(system)
    lists = jax.lax.cond(
        over.is_stale(neighbors.lists, still),
        lambda: over.search(neighbors.lists, still, neighbors.skin, neighbors.shapes)[0],
        lambda: neighbors.lists,
    )
    return replace(neighbors, lists=lists)


def predict(potential: Potential, params: PyTree, system: System, neighbors: DividedNeighbors) -> Prediction:
    """As `lamjax.predict`, over the domains of the neighbours; NaN where they overflow (`check` says why).

    Pure, for jit and grad. Neighbours that are stale are searched anew within, so that a forgotten update costs time
    only.
    """
    system = jax.tree.map(jnp.asarray, systems.as_system(system))
    current = update(potential, neighbors, system)
    over = evaluator(potential, neighbors.domains)
    predicted, status = over.predict(params, system, current.lists, current.shapes)
    return jax.tree.map(lambda x: jnp.where(status.overflow, jnp.nan, x), predicted)


def energy(potential: Potential, params: PyTree, system: System, neighbors: DividedNeighbors) -> Float[Array, ""]:
    """As `potential.energy` (eV), over the domains of the neighbours; NaN where they overflow, its gradients too."""
    system = jax.tree.map(jnp.asarray, systems.as_system(system))
    current = update(potential, neighbors, system)
    over = evaluator(potential, neighbors.domains)
    value, status = over.energy(params, system, current.lists, current.shapes)
    return value * jnp.where(status.overflow, jnp.nan, 1)


def check(neighbors: DividedNeighbors) -> None:
    """Raise ValueError where atoms or neighbours have no room, with the domain, what it holds and what it could."""
    expect(neighbors, DividedNeighbors, "domains.check takes the neighbours", _REMEDY)
    lists, shapes = jax.tree.map(np.asarray, neighbors.lists), neighbors.shapes
    again = "Allocate anew for this structure: domains.allocate(potential, system, domains)."
    for k, (own, halo) in enumerate(lists.number):
        if own + halo + 1 > shapes.n_atoms:
            place = ", ".join(map(str, np.unravel_index(k, neighbors.domains.counts)))
            raise ValueError(
                f"Domain ({place}) holds {own} atoms and {halo} in its halo, its arrays {shapes.n_atoms - 1}. {again}"
            )
    for shell, most, room in zip(neighbors.shells, lists.largest_counts, shapes.capacities, strict=True):
        if (most if shell.sel is None else min(most, shell.sel)) > room:
            raise ValueError(f"An atom has {most} neighbours within {shell.cutoff:g} Å, the arrays {room}. {again}")
    if not lists.usable:
        raise ValueError(
            "Positions or cell are not finite, or the cell has changed so much that halos or the bins of the search "
            f"have no room. {again}"
        )


_REMEDY = "Make them with domains.allocate(potential, system, (2, 2, 1)), of the potential that they are used with."
