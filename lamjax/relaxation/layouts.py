"""Layouts of the structures of a batch in the lists of atoms that a potential is evaluated for.

A layout finds neighbours and evaluates: `Padded` all structures of a batch in one list, `flat.Flat` those that still
move, packed without padding.
"""

from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Bool, Int, PyTree

from lamjax.neighbors import Neighbors, verlet
from lamjax.neighbors.verlet import Verlet
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.surface import Evaluation, Surface


class Evaluated(NamedTuple):
    """An evaluation of every structure, and whether its neighbours were complete."""

    evaluation: Evaluation
    usable: Bool[Array, " n_batch"]  # energy and forces are finite
    overflow: Bool[Array, " n_batch"]  # neighbours are missing
    truncated: Bool[Array, " n_batch"]  # the model's own `sel` drops neighbours
    largest_counts: Int[Array, "n_batch n_shells"]  # the most neighbours of an atom, within each shell


class Layout(Protocol):
    """Lists with a skin of the neighbours of a batch, and its evaluation with them."""

    def refresh(self, surface: Surface, lists: Any, z: BatchRows) -> Any:
        """The lists, those of structures that have moved too far searched anew."""
        ...

    def evaluate(
        self, surface: Surface, params: PyTree, z: BatchRows, lists: Any, active: Bool[Array, " n_batch"]
    ) -> Evaluated:
        """Energy, forces and flags of the structures that are active; of the others anything."""
        ...


class Padded(NamedTuple):
    """A layout in which all structures of a batch, padding included, follow one another in one list of atoms."""

    capacities: tuple[int, ...]
    skin: float  # Å

    def empty(self, surface: Surface, neighbors: Neighbors) -> Verlet:
        """Lists that have to be searched, with the images of `neighbors`."""
        shells = surface.potential.shells
        return jax.vmap(lambda s, n: verlet.empty(s, n, shells, self.skin))(surface.reference, neighbors)

    def refresh(self, surface: Surface, lists: Verlet, z: BatchRows) -> Verlet:
        """The lists, those of structures that have moved too far searched anew."""
        return verlet.refresh(lists, surface.place(jax.lax.stop_gradient(z)), surface.potential.shells, self.skin)

    def neighbors(self, surface: Surface, lists: Verlet, z: BatchRows) -> Neighbors:
        """The neighbours at z, from lists that are not stale."""
        shells = surface.potential.shells
        return jax.vmap(lambda v, s: verlet.narrow(v, s, shells, self.capacities))(lists, surface.place(z))

    def evaluate(
        self,
        surface: Surface,
        params: PyTree,
        z: BatchRows,
        lists: Verlet,
        active: Bool[Array, " n_batch"] | None = None,
    ) -> Evaluated:
        """Energy, forces and flags of all structures."""
        neighbors = self.neighbors(surface, lists, z)
        evaluation = surface.evaluate(params, z, neighbors)
        flags = neighbors.overflow, neighbors.truncated, neighbors.largest_counts
        return Evaluated(evaluation, evaluation.is_usable(), *flags)
