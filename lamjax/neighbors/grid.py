"""A search whose work grows as the number of atoms does: only the bins around an atom are looked at."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lamjax.lattice import basis, complete_cell, face_distances, heights, wrap_shift
from lamjax.neighbors.host import count, plan_capacities
from lamjax.neighbors.search import counted
from lamjax.neighbors.types import Shell, round_up
from lamjax.neighbors.verlet import ROUNDING, Verlet, closest
from lamjax.system import System

BLOCK = 512  # atoms that are searched at once
FULLER = 1.3  # than now a bin may become, at least


class Grid(NamedTuple):
    """A division of space into bins. Hashable, static; bins follow the cell: one grid serves a changing cell."""

    bins: tuple[int, int, int]  # along each lattice vector; where nothing is periodic, along that normal
    reach: tuple[int, int, int]  # bins on either side that an atom looks at
    capacity: int  # atoms that a bin holds

    @property
    def stencil(self) -> np.ndarray:
        """Offsets (n, 3) of the bins that an atom looks at."""
        return np.array(list(itertools.product(*(range(-m, m + 1) for m in self.reach))), np.int32)


class Spare(NamedTuple):
    """Room of arrays beyond what a structure needs at its present positions."""

    skin: float  # Å beyond the cutoff
    headroom: float  # times its neighbours, and the atoms of a domain
    shrinking: float = 1.0  # times the width that bins need, for a cell that may become smaller


class Shapes(NamedTuple):
    """Widths of the arrays of a moving structure. Hashable, static."""

    capacities: tuple[int, ...]  # slots for each shell
    width: int  # of the lists with a skin
    grid: Grid


def shapes(system: System, shells: tuple[Shell, ...], spare: Spare, least: Shapes | None = None) -> Shapes:
    """Room for a structure and what is to spare, and at least as much as before. On the host."""
    n_neighbors = [math.ceil(spare.headroom * n) for n in count(system, shells)]
    if least is not None:
        n_neighbors = [max(n, capacity) for n, capacity in zip(n_neighbors, least.capacities, strict=True)]
    radius = shells[0].cutoff + spare.skin
    within = count(system, (shells[0]._replace(cutoff=radius, sel=None),))[0]
    width = max(math.ceil(spare.headroom * within), 0 if least is None else least.width, 4)
    # an empty place of a bin costs next to nothing
    bins = plan(system, spare.shrinking * radius, max(spare.headroom, FULLER))
    if least is not None and (bins.bins, bins.reach) == (least.grid.bins, least.grid.reach):
        bins = bins._replace(capacity=max(bins.capacity, least.grid.capacity))
    return Shapes(plan_capacities(tuple(n_neighbors), shells), width, bins)


def plan(system: System, radius: float, headroom: float = FULLER) -> Grid:
    """Bins a little wider than `radius` (Å), or narrower ones of which more are looked at where a cell is small.

    `headroom` is how much fuller than now a bin may become. On the host.
    """
    pbc = np.asarray(system.pbc)
    real = np.asarray(system.numbers) > 0
    x = np.asarray(system.positions, np.float64)[real]
    cell = complete_cell(np.asarray(system.cell), pbc)
    along = x @ np.linalg.inv(cell)
    extent = np.ptp(along, axis=0) if len(x) else np.zeros(3)
    height = np.where(pbc, face_distances(np.asarray(system.cell), pbc), extent)
    bins = tuple(max(1, int(h / radius)) for h in height)
    reach = tuple(
        math.ceil(radius * n / h - 1e-6) if periodic else min(1, n - 1)
        for n, h, periodic in zip(bins, height, pbc, strict=True)
    )
    low = np.where(pbc, 0, along.min(axis=0, initial=np.inf))
    share = (along - low) / np.where(pbc | (extent == 0), 1, extent)
    share = np.where(pbc, share - np.floor(share), share)
    home = np.minimum((share * bins).astype(int), np.array(bins) - 1)
    fullest = np.unique(home, axis=0, return_counts=True)[1].max(initial=1)
    return Grid(bins, reach, min(round_up(math.ceil(headroom * fullest)), max(1, len(real))))


def search(
    verlet: Verlet, system: System, shells: tuple[Shell, ...], skin: float, grid: Grid
) -> tuple[Verlet, Int[Array, ""]]:
    """As `verlet.search`, and the number of atoms in the fullest bin; more than `grid.capacity` make it not usable."""
    system = jax.lax.stop_gradient(system)
    n, width = verlet.mask.shape
    shift, finite = wrap_shift(system.positions, system.cell, system.pbc)
    home = system.positions + shift.astype(system.cell.dtype) @ system.cell
    bins, size = _bins(system, home, grid)
    members, fullest = _members(bins, system.numbers > 0, grid)
    within = jnp.min(jnp.where(_looked_at_all(system, grid), jnp.inf, np.array(grid.reach) * size))
    radius = jnp.minimum(jnp.asarray(shells[0].cutoff + skin, within.dtype), within)

    def around(k: Any) -> tuple:
        """Indices, images and mask of an atom's list, the distance to the nearest without a slot, numbers in shells."""
        j, images, present = _candidates(k, bins, members, system.pbc, grid)
        d = home[j] + images.astype(home.dtype) @ system.cell - home[k]
        present &= ~((j == k) & jnp.all(images == 0, axis=-1)) & (system.numbers[k] > 0)
        squared = jnp.where(present, jnp.sum(d * d, axis=-1), jnp.inf)[None]
        kept, slot, dropped = (x[0] for x in closest(squared, width))
        images = images[slot] + shift[j[slot]] - shift[k]
        mask = kept <= (radius * (1 + ROUNDING)) ** 2
        return j[slot].astype(jnp.int32), images, mask, dropped, counted(squared, shells)[0]

    indices, images, mask, dropped, number = jax.lax.map(around, jnp.arange(n), batch_size=min(n, BLOCK))
    return verlet._replace(
        indices=indices,
        images=images.astype(jnp.int32),
        mask=mask,
        radius=jnp.minimum(radius, jnp.min(dropped, initial=jnp.inf).astype(radius.dtype)),
        positions=system.positions,
        cell=system.cell,
        largest_counts=jnp.max(number, axis=0, initial=0),
        usable=finite & (within >= shells[0].cutoff) & (fullest <= grid.capacity),
    ), fullest


def _bins(system: System, home: Array, grid: Grid) -> tuple[Array, Any]:
    """The bin (n_atoms, 3) of every wrapped atom, and how thick bins are (3,), in Å.

    Without periodicity the bins divide what the atoms span; an atom at its very end belongs to the last one.
    """
    complete = basis(system.cell, system.pbc)
    along = home @ jnp.linalg.inv(complete)
    is_atom = (system.numbers > 0)[:, None]
    low = jnp.min(jnp.where(is_atom, along, jnp.inf), axis=0, initial=jnp.inf)
    high = jnp.max(jnp.where(is_atom, along, -jnp.inf), axis=0, initial=-jnp.inf)
    low, span = jnp.where(system.pbc, 0, low), jnp.where(system.pbc, 1, jnp.maximum(high - low, 1e-6))
    number = np.array(grid.bins)
    bins = jnp.floor((along - low) / span * number)
    return jnp.clip(bins, 0, number - 1).astype(jnp.int32), heights(complete) * span / number


def _members(bins: Any, is_atom: Array, grid: Grid) -> tuple[Array, Array]:
    """The atoms of every bin, (n_bins, capacity), filled up with n_atoms; and the number in the fullest one."""
    n, n_bins = len(bins), math.prod(grid.bins)
    flat = jnp.where(is_atom, _flat(bins, grid), n_bins)
    order = jnp.argsort(flat)
    count = jnp.bincount(flat, length=n_bins + 1)
    rank = jnp.arange(n) - (jnp.cumsum(count) - count)[flat[order]]
    members = jnp.full((n_bins + 1, grid.capacity), n, jnp.int32)
    members = members.at[flat[order], rank].set(order.astype(jnp.int32), mode="drop")
    return members[:n_bins], jnp.max(count[:n_bins])


def _candidates(k: Any, bins: Any, members: Any, pbc: Array, grid: Grid) -> tuple[Array, Array, Any]:
    """Atoms (n_candidates,) around atom k, their images (n_candidates, 3), and which are there."""
    number = np.array(grid.bins)
    surrounding = bins[k] + grid.stencil
    images = jnp.floor_divide(surrounding, number)
    inside = jnp.all((images == 0) | pbc, axis=-1)
    j = members[_flat(surrounding - images * number, grid)]
    images = jnp.broadcast_to(images[:, None, :], (*j.shape, 3)).reshape(-1, 3)
    present = (j < len(bins)) & inside[:, None]
    return jnp.where(present, j, 0).reshape(-1), images, present.reshape(-1)


def _flat(bins: Any, grid: Grid) -> Any:
    _, second, third = grid.bins
    return (bins[..., 0] * second + bins[..., 1]) * third + bins[..., 2]


def _looked_at_all(system: System, grid: Grid) -> Array:
    """Directions in which all bins are searched, however thick they are."""
    return ~system.pbc & (np.array(grid.bins) <= np.array(grid.reach) + 1)
