"""Division of space into domains, and the atoms of each: its own ones and their halo."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from lamjax.lattice import basis, heights, wrap_shift
from lamjax.system import System

AXIS = "domain"
MARGIN = 1e-3  # Å that a halo is deeper than needed: positions at its border are rounded
SPARE = 0.1  # Å beyond the search radius to the images of a domain, so that none of them is listed


class Domains(NamedTuple):
    """Equal parts of the cell, one on each device. Hashable, static."""

    counts: tuple[int, int, int]  # parts along each lattice vector; where nothing is periodic, along that normal
    mesh: Mesh  # of one axis

    @property
    def number(self) -> int:
        """The number of domains."""
        return math.prod(self.counts)

    @property
    def divided(self) -> np.ndarray:
        """True (3,) for the lattice vectors along which there is more than one domain."""
        return np.array(self.counts) > 1


class Geometry(NamedTuple):
    """Positions of atoms relative to the domains; lengths along lattice vectors are fractions of the divided ones."""

    share: Float[Array, "n_atoms 3"]  # 0 to 1
    shift: Int[Array, "n_atoms 3"]  # the lattice vectors that bring an atom there
    depth: Float[Array, " 3"]  # of a halo; 0 in directions that are not divided
    cell: Float[Array, "3 3"]  # rows span a domain with its halo and a gap, without images as neighbours
    complete: Bool[Array, ""]  # positions are finite, and the images enough for the halo


def divide(counts: Sequence[int], devices: Sequence[Any] | None = None) -> Domains:
    """`counts` domains along each of the three lattice vectors, one on each of the devices (default: all of jax's).

    Raises ValueError for other than three positive whole numbers, and where there are fewer devices than domains.
    """
    if not _are_counts(counts):
        raise ValueError(f"domains are {counts}; expected three whole numbers of 1 or more, such as (2, 2, 1).")
    counts = (int(counts[0]), int(counts[1]), int(counts[2]))
    devices, number = list(jax.devices() if devices is None else devices), math.prod(counts)
    if len(devices) < number:
        raise ValueError(
            f"{' x '.join(map(str, counts))} domains need {number} devices, there are {len(devices)} "
            f"({devices[0].platform if devices else 'none'}). Take fewer domains; docs/how-to/devices.md says how a "
            "processor is made to look like several devices."
        )
    return Domains(counts, Mesh(np.array(devices[:number]), (AXIS,)))


def _are_counts(counts: Any) -> bool:
    """Whether these are three whole numbers of 1 or more."""
    try:
        numbers = np.asarray(counts)
    except ValueError:  # lists of several lengths
        return False
    known = numbers.shape == (3,) and numbers.dtype.kind in "iuf"
    return bool(known and np.all(np.isfinite(numbers) & (numbers >= 1) & (numbers == np.round(numbers))))


def geometry(
    system: System, domains: Domains, depth: float, gap: float, images: tuple[int, int, int] | None
) -> Geometry:
    """The geometry for halos `depth` (Å) deep whose images on either side are `gap` (Å) away.

    `images` is how many cells away a halo may reach; None: as far as it does.
    """
    rows = basis(system.cell, system.pbc)
    shift, finite = wrap_shift(system.positions, system.cell, system.pbc)
    along = system.positions @ jnp.linalg.inv(rows) + shift
    real, pbc = (system.numbers > 0)[:, None], system.pbc
    low = jnp.min(jnp.where(real, along, jnp.inf), axis=0, initial=jnp.inf)
    high = jnp.max(jnp.where(real, along, -jnp.inf), axis=0, initial=-jnp.inf)
    low, span = jnp.where(pbc, 0, low), jnp.where(pbc, 1, jnp.maximum(high - low, 1e-6))
    width = span * heights(rows)  # Å, of the divided lengths
    deep = jnp.where(domains.divided, (depth + MARGIN) / width, 0)
    whole = pbc & ~domains.divided
    stretch = jnp.where(whole, 1, (1 / np.array(domains.counts) + 2 * deep + (gap + SPARE) / width) * span)
    reached = jnp.where(pbc, deep, 0) <= jnp.array(np.inf if images is None else images)
    return Geometry((along - low) / span, shift, deep, rows * stretch[:, None], finite & jnp.all(reached))


def membership(
    system: System, places: Geometry, domains: Domains, k: Any, offsets: Int[np.ndarray, "n_offsets 3"]
) -> tuple[Bool[Array, " n_atoms"], Bool[Array, "n_offsets n_atoms"]]:
    """The atoms of domain k, and which atoms are in its halo, for each image of the cell (the home image first).

    Every atom belongs to one domain. The halo holds all images that are as near to a domain as the halo is deep.
    """
    number = np.array(domains.counts)
    position = jnp.stack(jnp.unravel_index(k, domains.counts))
    real = system.numbers > 0
    home = jnp.clip(jnp.floor(places.share * number), 0, number - 1).astype(jnp.int32)
    own = real & jnp.all(home == position, axis=1)
    begin, end = position / number - places.depth, (position + 1) / number + places.depth

    def within(offset: Array) -> Array:
        at = places.share + offset
        return real & jnp.all((at >= begin) & (at < end) | ~domains.divided, axis=1)

    halo = jax.vmap(within)(jnp.asarray(offsets))
    return own, halo.at[0].set(halo[0] & ~own)


def collect(
    own: Array, halo: Array, shift: Array, offsets: Int[np.ndarray, "n_offsets 3"], capacity: int
) -> tuple[Int[Array, " capacity"], Int[Array, "capacity 3"], Int[Array, " 2"]]:
    """Atoms and images of a domain in arrays of that width, its own from slot 1 on and then the halo; how many of both.

    Slot 0 is left to the structure's first atom. What has no slot is left out: more than `capacity - 1` is an overflow.
    """
    n = len(own)
    number = jnp.stack([jnp.sum(own), jnp.sum(halo)]).astype(jnp.int32)
    flat = halo.reshape(-1)
    slots = jnp.concatenate([jnp.cumsum(own), number[0] + jnp.cumsum(flat)])
    slots = jnp.where(jnp.concatenate([own, flat]), slots, capacity)
    entries = jnp.concatenate([jnp.arange(n), jnp.tile(jnp.arange(n), len(offsets))]).astype(jnp.int32)
    image = jnp.concatenate([shift, (shift + jnp.asarray(offsets)[:, None, :]).reshape(-1, 3)])
    atoms = jnp.zeros(capacity, jnp.int32).at[slots].set(entries, mode="drop")
    images = jnp.zeros((capacity, 3), jnp.int32).at[slots].set(image.astype(jnp.int32), mode="drop")
    return atoms, images, number
