"""Atoms without neighbours: how a potential is evaluated so that none of its derivatives is infinite for them.

At a sum over no neighbours the derivative of a root is infinite, a logarithm and a quotient are so themselves; where
JAX multiplies that by the zero of an atom that does not count, it gets NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import Array, Bool, Float, Int, PyTree

from lamjax import system as systems
from lamjax.neighbors.types import Known, Neighbors, displacements
from lamjax.system import System


def atomic_energies(
    potential: Callable, params: PyTree, system: System, neighbors: Neighbors, kind: int, distance: float
) -> Float[Array, " n_atoms"]:
    """`potential(params, system, neighbors)` (eV), 0 for padding, with finite derivatives for atoms without neighbours.

    In the place of such an atom the potential is shown one that has a neighbour, and its energy does not count. Real
    atoms without neighbours are evaluated once more, as they are and at vectors that do not depend on positions, if
    there are any. Where all atoms are alone they are shown as number `kind`, `distance` (Å) apart.
    """
    system, neighbors = jax.tree.map(jnp.asarray, (system, neighbors))
    is_real, alone = systems.real(system), ~jnp.any(neighbors.mask, axis=1)
    shown = accompanied(system, neighbors, alone, kind, distance)
    run, uses_neighbors = _traced(potential, params, *shown)
    if not uses_neighbors:
        return run(params, system, neighbors, displacements(system, neighbors))
    energies = run(params, *shown, displacements(*shown))

    def as_they_are(_: Any) -> Any:
        completed = accompanied(system, neighbors, alone & ~is_real, kind, distance)
        return run(params, *completed, jax.lax.stop_gradient(displacements(*completed)))

    isolated = alone & is_real
    true = jax.lax.cond(jnp.any(isolated), as_they_are, lambda _: jnp.zeros_like(energies), None)
    return jnp.where(isolated, true, jnp.where(is_real, energies, 0))


def accompanied(
    system: System, neighbors: Neighbors, chosen: Bool[Array, " n_atoms"], kind: int, distance: float
) -> tuple[System, Neighbors]:
    """The atoms and their list, with one neighbour for each of the `chosen` ones, which have none.

    They stand where the nearest neighbour of some atom stands, as its element, and see that atom alone.
    """
    n = system.n_atoms
    if n == 1:
        return _beside_its_image(system, neighbors, chosen, kind, distance)
    row = jnp.arange(n)
    has_neighbors = jnp.any(neighbors.mask, axis=1)
    donor = jnp.argmax(has_neighbors)
    some, slot = has_neighbors[donor], jnp.argmax(neighbors.mask[donor])
    partner = jnp.where(some, donor, jnp.where((row ^ 1) < n, row ^ 1, row - 1))
    nearest = _vector(system, neighbors, donor, slot)
    # where there is no donor, two and two stand side by side, or one beside an atom that is shown where it is
    beside = jnp.where(chosen[partner], row % 2, 1)[:, None] * jnp.array([distance, 0, 0], nearest.dtype)
    apart = beside + jnp.where(chosen[partner, None], system.positions[0], system.positions[partner])
    place = jnp.where(some, system.positions[donor] + nearest, apart)
    number = jnp.where(some, system.numbers[neighbors.indices[donor, slot]], jnp.max(system.numbers))
    completed = system._replace(
        positions=jnp.where(chosen[:, None], jax.lax.stop_gradient(place), system.positions),
        numbers=jnp.where(chosen, jnp.where(number > 0, number, kind), system.numbers),
    )
    return completed, _one_neighbor(neighbors, chosen, partner, jnp.zeros(3, neighbors.images.dtype))


def _beside_its_image(
    system: System, neighbors: Neighbors, chosen: Any, kind: int, distance: float
) -> tuple[System, Neighbors]:
    """As `accompanied`, for a single atom: it sees its image in a cell of its own."""
    cell = distance * jnp.eye(3, dtype=system.cell.dtype)
    completed = system._replace(
        cell=jnp.where(chosen[0], cell, system.cell),
        numbers=jnp.where(chosen & (system.numbers == 0), kind, system.numbers),
    )
    return completed, _one_neighbor(neighbors, chosen, jnp.zeros(1, int), jnp.array([1, 0, 0], neighbors.images.dtype))


def _one_neighbor(
    neighbors: Neighbors, chosen: Any, partner: Int[Array, "*n_atoms"], image: Int[Array, " 3"]
) -> Neighbors:
    """The list in which each of the chosen atoms has its partner in the first slot, and no other neighbour."""

    def first(mask: Array) -> Array:
        return jnp.where(chosen[:, None], jnp.arange(mask.shape[1]) == 0, mask)

    partner = jnp.broadcast_to(partner, chosen.shape)[:, None].astype(neighbors.indices.dtype)
    return neighbors._replace(
        indices=jnp.where(chosen[:, None], partner, neighbors.indices),
        images=jnp.where(chosen[:, None, None], image, neighbors.images),
        mask=first(neighbors.mask),
        inner=tuple(map(first, neighbors.inner)),
    )


def _vector(system: System, neighbors: Neighbors, i: Array, slot: Any) -> Float[Array, " 3"]:
    """r_ij of one slot."""
    cell = system.cell if system.structure is None else system.cell[system.structure[i]]
    shift = neighbors.images[i, slot].astype(cell.dtype) @ cell
    return system.positions[neighbors.indices[i, slot]] + shift - system.positions[i]


def _traced(potential: Callable, params: PyTree, system: System, neighbors: Neighbors) -> tuple[Callable, bool]:
    """The potential as a function of the vectors r_ij too, traced once; whether it looks at neighbours at all."""

    def of_vectors(params: PyTree, system: System, neighbors: Neighbors, vectors: Array) -> Any:
        known = Known(vectors, system.positions, system.cell, neighbors.indices, neighbors.images)
        return potential(params, system, neighbors._replace(known=known))

    vectors = displacements(system, neighbors)
    program = jax.make_jaxpr(of_vectors)(params, system, neighbors, vectors)
    n_others = len(jax.tree.leaves((params, system)))
    own = set(program.jaxpr.invars[n_others:])
    used = [v for equation in program.jaxpr.eqns for v in equation.invars] + list(program.jaxpr.outvars)
    uses_neighbors = any(v in own for v in used if not isinstance(v, Literal))
    evaluate = jaxpr_as_fun(program)
    return lambda *args: evaluate(*jax.tree.leaves(args))[0], uses_neighbors
