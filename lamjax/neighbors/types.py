"""Who sees whom: dense, nearest first, with explicit integer images."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax import system as systems
from lamjax.system import System


class Shell(NamedTuple):
    """A cutoff of a model and how many nearest neighbours it keeps inside it (None: all). Hashable, static."""

    cutoff: float  # Å
    sel: int | None = None


class Neighbors(NamedTuple):
    """The neighbours of every atom within the cutoffs ("shells", widest first) of a potential.

    Slots are sorted by distance, so a shorter shell is a prefix of the list: `inner[k]` is as wide as the (k+1)-th
    shell needs. A padding slot points to its own atom with image 0 and is False in every mask.
    """

    indices: Int[Array, "*batch n_atoms capacity"]  # the neighbour j of atom i
    images: Int[Array, "*batch n_atoms capacity 3"]  # S in r_ij = x_j + S cell - x_i
    mask: Bool[Array, "*batch n_atoms capacity"]  # within the widest shell
    inner: tuple[Bool[Array, "*batch n_atoms _"], ...]  # within each further shell
    offsets: Int[Array, "*batch n_offsets 3"]  # the cell images that a rebuild searches
    found: Int[Array, "*batch n_shells"]  # largest number of neighbours of an atom within each shell
    overflow: Bool[Array, "*batch"]  # neighbours are missing: the list is too narrow or too few images were searched
    truncated: Bool[Array, "*batch"]  # the model itself drops neighbours beyond its `sel` (as DeePMD-kit does)

    @property
    def masks(self) -> tuple:
        """One mask a shell, widest shell first."""
        return (self.mask, *self.inner)

    @property
    def capacities(self) -> tuple[int, ...]:
        """Slots per atom for each shell."""
        return tuple(mask.shape[-1] for mask in self.masks)


def displacements(system: System, neighbors: Neighbors) -> Float[Array, "n_atoms capacity 3"]:
    """r_ij = x_j + S_ij cell - x_i in Å. A padding slot is a constant, not zero, so that norms differentiate."""
    positions, cell = jnp.asarray(system.positions), jnp.asarray(system.cell)
    shift = systems.transform(neighbors.images.astype(cell.dtype), systems.of_atoms(system, cell))
    d = positions[neighbors.indices] + shift - positions[:, None, :]
    return jnp.where(neighbors.mask[..., None], d, jnp.array([1.0, 0.0, 0.0], d.dtype))


def round_up(n: int, multiple: int = 4) -> int:
    """The smallest multiple that is at least `n` (and at least one multiple)."""
    return max(multiple, math.ceil(n / multiple) * multiple)
