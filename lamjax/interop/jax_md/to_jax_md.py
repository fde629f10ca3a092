"""Any potential in jax-md's own conventions, for scripts that are written with jax-md.

The only place for jax-md's columns as lattice vectors, fractional coordinates and sign of the stress.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from lamjax.domains.division import Domains
from lamjax.domains.lists import DomainLists
from lamjax.domains.moving import AnyShapes, Evaluator, ListStatus, evaluator
from lamjax.imports import jax_md
from lamjax.lattice import basis
from lamjax.neighbors import Neighbors
from lamjax.neighbors.grid import Spare
from lamjax.neighbors.search import verdict
from lamjax.neighbors.types import Shell, named, slots
from lamjax.potential import Potential
from lamjax.potential import allocate as allocate_neighbors
from lamjax.system import System, check_atoms, parameters, to_ase

SPARE = 2  # slots; when fewer are left a list asks to be allocated anew, before a neighbour is missing


@jax.tree_util.register_dataclass  # no NamedTuple, since its shapes are static
@dataclass(frozen=True)
class NeighborList:
    """Neighbours as jax-md's routines pass them through: `neighbor=nbrs`. All images are in it, of any cell.

    `did_buffer_overflow` stays True until `neighbor_fn.allocate` makes another list; energies are NaN where a neighbour
    would be missing.
    """

    lists: Any  # of the potential's evaluator
    did_buffer_overflow: Bool[Array, ""]
    shapes: AnyShapes = field(metadata={"static": True})
    shells: tuple[Shell, ...] = field(metadata={"static": True})
    update_fn: Callable = field(metadata={"static": True})

    def update(self, position: Float[Array, "n_atoms 3"], **kwargs: Any) -> "NeighborList":
        """The list for these positions (and `box`), searched anew if atoms or cell have moved by half the skin."""
        return self.update_fn(position, self, **kwargs)

    @property
    def idx(self) -> Int[Array, "n_atoms width"]:
        """Neighbours within cutoff and skin, n_atoms in an empty slot, as in jax-md's dense lists.

        Raises ValueError for a list over domains, each of which counts its own atoms.
        """
        if isinstance(self.lists, DomainLists):
            raise ValueError(
                "A list over domains has no common `idx`: every domain numbers its own atoms. Make the list without "
                "`domains` where jax-md's code reads it."
            )
        return jnp.where(self.lists.mask, self.lists.indices, len(self.lists.positions))

    @property
    def reference_position(self) -> Float[Array, "n_atoms 3"]:
        """Cartesian positions for which the list was made."""
        return self.lists.positions


def energy_neighbor_list(
    potential: Potential,
    params: PyTree,
    numbers: Int[Array, " n_atoms"],
    box: Array | None = None,
    *,
    fractional_coordinates: bool | None = None,
    dr_threshold: float = 1.0,
    capacity_multiplier: float = 1.25,
    fparam: Array | None = None,
    aparam: Array | None = None,
    charge_spin: Array | None = None,
    domains: Domains | None = None,
) -> tuple[Any, Callable]:
    """`(neighbor_fn, energy_fn)` of a potential, as the `*_neighbor_list` functions of `jax_md.energy` give them.

    `numbers` are atomic numbers; `box` is that of `space.periodic_general` (a length, three, or a matrix whose columns
    are the lattice vectors, in Å), None for `space.free`. `fractional_coordinates` must be that of the space; jax-md's
    own defaults disagree, so there is none here. `dr_threshold` (Å) is the skin. Units are eV, Å, amu.
    With `domains` (of `lamjax.domains.divide`) the structure is evaluated over several devices.
    `fparam`, `aparam` (one row an atom) and `charge_spin` are what a model takes beside the atoms, as in `System`.

    `neighbor_fn.allocate(R, box=...)` and `.update(R, nbrs, box=...)` make lists of all images, right for any cell,
    also where it is smaller than the cutoff or skewed. `energy_fn(R, neighbor, box=..., new_box=..., perturbation=...)`
    is the energy (eV); its gradients are Cartesian, as everywhere in jax-md. Other `params` can be handed through by
    that name. A stale list is searched anew within `energy_fn`, so that a forgotten update costs time only.

    At constant pressure choose Cartesian coordinates: jax-md (0.2.29) displaces fractional ones as if they were
    Cartesian when the box grows. Raises ValueError for unknown elements, a left-handed box (jax-md's volume would be
    negative), and, in `allocate`, for positions that do not fit.
    """
    partition = jax_md().partition  # late, for it takes a second

    numbers = np.asarray(numbers, np.int32)
    if (numbers <= 0).any():
        raise ValueError(f"Atom {int(np.argmin(numbers))} has atomic number {numbers.min()}; expected 1 to 118.")
    if box is not None and fractional_coordinates is None:
        raise ValueError(
            "Say fractional_coordinates=True or False, as for space.periodic_general, whose default is True."
        )
    further = parameters(len(numbers), fparam, aparam, charge_spin)
    place = _placing(numbers, box, bool(fractional_coordinates), further)
    evaluate, skin = evaluator(potential, domains), float(dr_threshold)
    update = _updating(potential.shells, evaluate, place, skin)
    allocate = _allocating(potential, evaluate, place, skin, capacity_multiplier, update)
    return partition.NeighborListFns(allocate, update), _evaluating(potential.shells, evaluate, params, place, skin)


def _evaluating(shells: tuple[Shell, ...], evaluate: Evaluator, default: Any, place: Callable, skin: float) -> Callable:
    @jax.jit
    def energy(
        params: PyTree,
        position: Array,
        neighbor: NeighborList,
        box: Array,
        new_box: Array | None,
        perturbation: float | Array,
    ) -> Any:
        system = place(position, box, new_box, perturbation)
        lists, system = _current(neighbor, system, shells, evaluate, skin)
        value, status = evaluate.energy(params, system, lists, neighbor.shapes)
        return (value * jnp.where(status.overflow, jnp.nan, 1)).astype(position.dtype)  # a factor: forces are NaN, too

    def energy_fn(
        position: Array,
        neighbor: Any,
        box: Array | None = None,
        new_box: Array | None = None,
        perturbation: float | Array | None = None,
        params: PyTree = default,
        **unused: Any,
    ) -> Any:
        return energy(params, jnp.asarray(position), neighbor, box, new_box, perturbation)

    return energy_fn


def _updating(shells: tuple[Shell, ...], evaluate: Evaluator, place: Callable, skin: float) -> Callable:
    @jax.jit
    def refreshed(position: Array, neighbor: NeighborList, box: Array, new_box: Array | None) -> Any:
        lists, system = _current(neighbor, place(position, box, new_box), shells, evaluate, skin)
        status = evaluate.look(lists, jax.lax.stop_gradient(system), neighbor.shapes)
        full = neighbor.did_buffer_overflow | _full(lists, status, neighbor.shapes, shells, skin)
        return replace(neighbor, lists=lists, did_buffer_overflow=full)

    def update(
        position: Array, neighbors: Neighbors, box: Array | None = None, new_box: Array | None = None, **unused: Any
    ) -> Any:
        return refreshed(jnp.asarray(position), neighbors, box, new_box)

    return update


def _allocating(
    potential: Potential, evaluate: Evaluator, place: Callable, skin: float, headroom: float, update: Callable
) -> Callable:
    shells = potential.shells

    def allocate(
        position: Array, extra_capacity: int = 0, box: Array | None = None, new_box: Array | None = None, **unused: Any
    ) -> NeighborList:
        system = place(jnp.asarray(position), box, new_box)
        check_atoms(to_ase(system))
        if np.linalg.det(system.cell) < 0:
            raise ValueError("The box is left-handed: jax-md takes its volume for negative. Swap two lattice vectors.")
        allocate_neighbors(potential, system)  # raises for unknown elements, warns of neighbours that the model drops
        shapes = _room(evaluate.shapes(system, Spare(skin, headroom, shrinking=1.02)), extra_capacity, shells)
        lists = evaluate.blank(system, shapes)
        lists = jax.jit(evaluate.search, static_argnums=(2, 3))(lists, system, skin, shapes)[0]
        return NeighborList(lists, jnp.zeros((), bool), shapes, shells, update)

    return allocate


def _placing(numbers: Int[np.ndarray, " n_atoms"], box: Array, fractional: bool, further: dict) -> Callable:
    """(position, box, new_box, perturbation) -> System: what jax-md's displacement functions make of them."""
    space = jax_md().space

    def place(position: Array, given: Any, new_box: Array | None, perturbation: float | Array | None = None) -> System:
        if position.shape != (len(numbers), 3):
            raise ValueError(f"Positions have shape {position.shape}; there are {len(numbers)} atomic numbers.")
        if box is None:
            columns = jnp.zeros((3, 3), position.dtype)
        else:
            columns = _columns(box if given is None else given, position.dtype)
            ends = columns if new_box is None else _columns(new_box, position.dtype)
            if fractional:
                position = space.transform(ends, position)  # whose gradients are Cartesian
            elif new_box is not None:
                position = position @ jnp.linalg.solve(columns.T, ends.T)
            columns = ends
        cell = columns.T
        if perturbation is not None:
            deformation = _columns(perturbation, position.dtype).T
            position, cell = position @ deformation, cell @ deformation
        periodic = jnp.full(3, box is not None)
        return System(position, jnp.asarray(numbers), cell, periodic, **jax.tree.map(jnp.asarray, further))

    return place


def _columns(box: Array, dtype: DTypeLike | None) -> Float[Array, "3 3"]:
    """A box (or perturbation) that may be a number or a diagonal, as a matrix that acts on columns."""
    box = jnp.asarray(box, dtype)
    return box if box.ndim == 2 and box.size > 1 else jnp.diag(jnp.broadcast_to(box.reshape(-1), (3,)))


def _current(
    neighbor: NeighborList, system: System, shells: tuple[Shell, ...], evaluate: Evaluator, skin: float
) -> tuple[Any, System]:
    """A list that is not stale, and the structure in the images of this list."""
    if neighbor.shells != shells:
        raise ValueError(
            f"The neighbour list was allocated for {named(neighbor.shells)}, the potential looks at {named(shells)}. "
            "Use the neighbor_fn and the energy_fn that energy_neighbor_list gives together."
        )
    system = _unwrapped(system, neighbor.lists)
    still = jax.lax.stop_gradient(system)
    lists = jax.lax.cond(
        evaluate.is_stale(neighbor.lists, still),
        lambda: evaluate.search(neighbor.lists, still, skin, neighbor.shapes)[0],
        lambda: neighbor.lists,
    )
    return lists, system


def _unwrapped(system: System, lists: Any) -> System:
    """The atoms in the images that are nearest to where the list was made: jax-md wraps what leaves the box."""

    def along(positions: Array, cell: Array) -> Any:
        return positions @ jnp.linalg.inv(basis(cell, system.pbc))

    moved = jax.lax.stop_gradient(along(system.positions, system.cell) - along(lists.positions, lists.cell))
    crossed = jnp.where(system.pbc, jnp.round(moved), 0)
    return system._replace(positions=system.positions - crossed @ system.cell)


def _room(shapes: Any, extra: int, shells: tuple[Shell, ...]) -> Any:
    """Shapes with slots to spare and `extra` ones, at most the model's `sel`."""
    wider = [c + 2 * SPARE + extra for c in shapes.capacities]
    limited = slots(w if s.sel is None else min(w, s.sel) for w, s in zip(wider, shells, strict=True))
    return shapes._replace(capacities=limited, width=shapes.width + extra)


def _full(lists: Any, status: ListStatus, shapes: AnyShapes, shells: tuple[Shell, ...], skin: float) -> Bool[Array, ""]:
    """True if a neighbour is missing, or could soon be, or half of the skin has no room."""
    missing, _ = verdict(status.largest_counts + SPARE, shells, shapes.capacities)
    return status.overflow | missing | ~(lists.radius >= shells[0].cutoff + skin / 2)
