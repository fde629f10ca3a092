"""Neighbour lists with a skin of every domain, each searched on its own device, in shapes known beforehand."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from lamjax.domains.division import AXIS, Domains, collect, geometry, membership
from lamjax.lattice import complete_cell, face_distances, images_around
from lamjax.neighbors import grid, verlet
from lamjax.neighbors.grid import FULLER, Grid, Shapes, Spare
from lamjax.neighbors.types import Shell, round_up
from lamjax.neighbors.verlet import Verlet
from lamjax.potential import Potential
from lamjax.system import System

EACH = PartitionSpec(AXIS)  # a part of the array for each domain
ALL = PartitionSpec()  # the same array for all


class DomainShapes(NamedTuple):
    """Widths of the arrays of a domain. Hashable, static."""

    capacities: tuple[int, ...]  # slots for each shell
    width: int  # of the lists with a skin
    grid: Grid  # of a domain with its halo
    n_atoms: int  # own ones, those of the halo, and the structure's first
    images: tuple[int, int, int]  # how many cells away a halo reaches


class DomainLists(NamedTuple):
    """The atoms of all domains and their neighbours, with an axis of domains before each array's own."""

    verlet: Verlet  # over the atoms of a domain
    atoms: Int[Array, "n_domains capacity"]  # which atom of the structure it is
    images: Int[Array, "n_domains capacity 3"]  # and in which image
    number: Int[Array, "n_domains 2"]  # own atoms, atoms of the halo
    whole: Verlet  # without neighbours: positions at the search, and the values for all domains

    @property
    def positions(self) -> Array:
        """Positions for which the lists were made (Å)."""
        return self.whole.positions

    @property
    def cell(self) -> Array:
        """The cell for which they were made (Å)."""
        return self.whole.cell

    @property
    def radius(self) -> Array:
        """The distance within which all lists are complete (Å)."""
        return self.whole.radius

    @property
    def largest_counts(self) -> Array:
        """The largest number of neighbours of an atom within each shell."""
        return self.whole.largest_counts

    @property
    def usable(self) -> Bool[Array, ""]:
        """Whether atoms, halos and bins of all domains had room."""
        return self.whole.usable


def field(potential: Potential) -> float:
    """The depth (Å) that a halo needs, the potential's receptive field; ValueError where that is unknown."""
    if potential.receptive_field is None:
        raise ValueError(
            "This potential does not say how far the energy of an atom depends on others, which is how deep the halo "
            "of a domain must be. Say it: potential._replace(receptive_field=x), x in Å. It is potential.cutoff for a "
            "sum over the own neighbours of an atom, and n times the cutoff for a net with n layers of messages."
        )
    return max(potential.receptive_field, potential.cutoff)


def shapes(
    potential: Potential, domains: Domains, system: System, spare: Spare, least: DomainShapes | None = None
) -> DomainShapes:
    """As `grid.shapes`, for domains: room for the atoms of the fullest one as well. On the host."""
    shells, radius = potential.shells, potential.cutoff + spare.skin
    before = None if least is None else Shapes(least.capacities, least.width, least.grid)
    plain = grid.shapes(system, shells, spare, before)
    pbc, depth = np.asarray(system.pbc), field(potential) + spare.skin
    height = face_distances(np.asarray(system.cell), pbc)
    deep = np.where(domains.divided & pbc, (spare.shrinking * depth + 0.1) / np.maximum(height, 1e-3), 0)
    images = (math.ceil(deep[0]), math.ceil(deep[1]), math.ceil(deep[2]))
    plans, most = [], 0
    for k in range(domains.number):
        cluster = _cluster(system, domains, depth, radius, k, images)
        plans.append(grid.plan(cluster, spare.shrinking * radius, max(spare.headroom, FULLER)))
        most = max(most, cluster.n_atoms)
    bins = plans[0]._replace(capacity=max(p.capacity for p in plans))
    n_atoms = round_up(math.ceil(spare.headroom * most) + 1)
    if least is not None:
        n_atoms = max(n_atoms, least.n_atoms)
        if (bins.bins, bins.reach) == (least.grid.bins, least.grid.reach):
            bins = bins._replace(capacity=max(bins.capacity, least.grid.capacity))
    return DomainShapes(plain.capacities, plain.width, bins, n_atoms, images)


def _cluster(system: System, domains: Domains, depth: float, gap: float, k: int, images: tuple) -> System:
    """The atoms of a domain with its halo, in a cell that holds them and a gap, with numpy."""
    own, halo, shift, cell = jax.tree.map(np.asarray, _members(system, domains, depth, gap, k, images))
    image, atom = np.nonzero(halo)
    home = np.flatnonzero(own)
    atoms = np.concatenate([home, atom])
    shifts = shift[atoms] + np.concatenate([np.zeros((len(home), 3), int), images_around(np.array(images))[image]])
    rows = complete_cell(np.asarray(system.cell), np.asarray(system.pbc))
    positions = np.asarray(system.positions)[atoms] + shifts @ rows
    return System(positions, np.asarray(system.numbers)[atoms], cell, np.ones(3, bool))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 5))
def _members(system: System, domains: Domains, depth: float, gap: float, k: Any, images: tuple) -> tuple:
    places = geometry(system, domains, depth, gap, images)
    return *membership(system, places, domains, k, images_around(np.array(images))), places.shift, places.cell


def blank(system: System, domains: Domains, shells: tuple[Shell, ...], shapes: DomainShapes) -> DomainLists:
    """Empty lists, stale from the start, each on its device."""
    dtype = system.positions.dtype
    of_domain = System(np.zeros((shapes.n_atoms, 3), dtype), np.zeros(shapes.n_atoms, int), system.cell, system.pbc)

    def make() -> tuple:
        one = verlet.blank(of_domain, shapes.width, jnp.zeros((0, 3), jnp.int32), shells)
        atoms = jnp.zeros(shapes.n_atoms, jnp.int32), jnp.zeros((shapes.n_atoms, 3), jnp.int32), jnp.zeros(2, jnp.int32)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (domains.number, *x.shape)), (one, *atoms))

    near, atoms, images, number = jax.jit(make, out_shardings=NamedSharding(domains.mesh, EACH))()
    whole = verlet.blank(system, 0, jnp.zeros((0, 3), jnp.int32), shells)
    return DomainLists(near, atoms, images, number, whole)


def search(
    lists: DomainLists, system: System, potential: Potential, domains: Domains, skin: float, shapes: DomainShapes
) -> tuple[DomainLists, Int[Array, "2"]]:
    """Atoms given to domains anew and their neighbours searched; the fullest bin and the most atoms of a domain.

    More of either than `shapes` have room for makes the lists not usable, and so does a halo beyond `shapes.images`.
    """
    system, shells = jax.lax.stop_gradient(system), potential.shells
    depth, gap, around = field(potential) + skin, potential.cutoff + skin, images_around(np.array(shapes.images))

    def of_domain(k: Array, system: System, old: Verlet) -> tuple:
        places = geometry(system, domains, depth, gap, shapes.images)
        own, halo = membership(system, places, domains, k[0], around)
        atoms, images, number = collect(own, halo, places.shift, around, shapes.n_atoms)
        cluster = members(system, domains, atoms, images, number, False)
        cluster = cluster._replace(cell=places.cell, pbc=jnp.ones(3, bool))
        new, fullest = grid.search(jax.tree.map(lambda x: x[0], old), cluster, shells, skin, shapes.grid)
        most = jnp.sum(number) + 1
        new = new._replace(usable=new.usable & places.complete & (most <= shapes.n_atoms))
        parts = new, atoms, images, number, jnp.stack([fullest, most])
        return jax.tree.map(lambda x: x[None], parts)

    run = jax.shard_map(of_domain, mesh=domains.mesh, in_specs=(EACH, ALL, EACH), out_specs=EACH, check_vma=False)
    new, atoms, images, number, fullest = run(jnp.arange(domains.number), system, lists.verlet)
    whole = lists.whole._replace(
        radius=jnp.min(new.radius),
        positions=system.positions,
        cell=system.cell,
        largest_counts=jnp.max(new.largest_counts, axis=0),
        usable=jnp.all(new.usable),
    )
    return DomainLists(new, atoms, images, number, whole), jnp.max(fullest, axis=0)


def is_stale(lists: DomainLists, system: System, potential: Potential) -> Bool[Array, ""]:
    """True if an atom may have come within the cutoff of another, or within reach of a domain, since the search."""
    deep = lists.whole._replace(radius=lists.radius - potential.cutoff + field(potential))
    halo = verlet.is_stale(deep, system, (Shell(field(potential)),))
    return verlet.is_stale(lists.whole, system, potential.shells) | halo


def members(system: System, domains: Domains, atoms: Array, images: Array, number: Array, first: bool) -> System:
    """The atoms of a domain and of its halo as a structure that is open where the cell is divided.

    Slot 0 is the structure's first atom, a neighbour of none, where `first` is True, and else padding.
    """
    slot = jnp.arange(len(atoms))
    occupied = (slot <= jnp.sum(number)) & (first | (slot > 0))
    return system._replace(
        positions=system.positions[atoms] + images.astype(system.cell.dtype) @ system.cell,
        numbers=jnp.where(occupied, system.numbers[atoms], 0),
        pbc=system.pbc & ~domains.divided,
        aparam=None if system.aparam is None else system.aparam[atoms],
    )
