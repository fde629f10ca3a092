"""Neighbour lists as arrays: one row an atom, nearest first, with explicit integer images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax import system as systems
from lamjax.arguments import renamed
from lamjax.system import System

MULTIPLES = 4, 2  # of slots in the widest shell, and in inner ones, whose pairs of neighbours cost as the square


class Shell(NamedTuple):
    """A cutoff of a model and how many nearest neighbours it keeps inside it (None: all). Hashable, static."""

    cutoff: float  # Å
    sel: int | None = None


@jax.tree_util.register_static
@dataclass(frozen=True)
class MadeFor:
    """The shells that a list holds: no array but part of its type, known while a program is traced."""

    shells: tuple[Shell, ...]


class Known(NamedTuple):
    """Vectors r_ij that were computed before, and the arrays that they belong to."""

    vectors: Float[Array, "n_atoms capacity 3"]  # Å
    positions: Float[Array, "n_atoms 3"]
    cell: Float[Array, "*n_structures 3 3"]
    indices: Int[Array, "n_atoms capacity"]
    images: Int[Array, "n_atoms capacity 3"]


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
    largest_counts: Int[Array, "*batch n_shells"]  # largest number of neighbours of an atom within each shell
    overflow: Bool[Array, "*batch"]  # neighbours are missing: the list is too narrow or too few images were searched
    truncated: Bool[Array, "*batch"]  # the model itself drops neighbours beyond its `sel` (as DeePMD-kit does)
    made_for: MadeFor | None = None  # None: the shells are not known
    known: Known | None = None  # not None: while lamjax evaluates a potential

    found = renamed("found", "largest_counts")

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
    known = neighbors.known
    arrays = system.positions, system.cell, neighbors.indices, neighbors.images
    if known is not None and all(a is b for a, b in zip(known[1:], arrays, strict=True)):
        d = known.vectors
    else:
        positions, cell = jnp.asarray(system.positions), jnp.asarray(system.cell)
        shift = systems.transform(neighbors.images.astype(cell.dtype), systems.of_atoms(system, cell))
        d = positions[neighbors.indices] + shift - positions[:, None, :]
    return jnp.where(neighbors.mask[..., None], d, jnp.array([1.0, 0.0, 0.0], d.dtype))


def check_shells(neighbors: Neighbors, shells: tuple[Shell, ...], anew: bool = False) -> None:
    """Raise ValueError for a list that was not made for these shells, while a program is traced.

    Another `sel` is fine where neither shell has fewer places than the list: nothing can have been dropped unseen; and
    where the list is searched `anew`.
    """
    widths = neighbors.capacities
    if neighbors.made_for is None:
        if len(widths) < len(shells):
            raise ValueError(f"The list of neighbours is for {len(widths)} cutoffs, {len(shells)} are needed.{_AGAIN}")
        return
    made = neighbors.made_for.shells
    if anew:
        made, shells = (tuple(s._replace(sel=None) for s in both) for both in (made, shells))
    fit = len(made) >= len(shells) and all(map(_fits, made, shells, widths))
    if not fit:
        raise ValueError(
            f"The neighbour list was made for {named(made)}, the potential looks at {named(shells)}.{_AGAIN}"
        )


_AGAIN = (
    " Make the list with the potential that it is used with: lamjax.allocate(potential, system), or data.plan and "
    "data.pack with potential.shells."
)


def _fits(made: Shell, wanted: Shell, width: int) -> bool:
    if made.cutoff != wanted.cutoff:
        return False
    most, least = (math.inf if s.sel is None else s.sel for s in (made, wanted))
    return most == least or (width < most and width <= least)


def named(shells: tuple[Shell, ...]) -> str:
    """Shells in words, for messages."""
    parts = [f"{s.cutoff:g} Å" + ("" if s.sel is None else f" (the nearest {s.sel})") for s in shells]
    return ("the cutoff " if len(parts) == 1 else "the cutoffs ") + ", ".join(parts)


def slots(counts: Iterable[int]) -> tuple[int, ...]:
    """Slots for these numbers of neighbours within each shell, `MULTIPLES`; none has more than the widest."""
    wanted = [round_up(n, MULTIPLES[k > 0]) for k, n in enumerate(counts)]
    return tuple(min(w, wanted[0]) for w in wanted)


def round_up(n: int, multiple: int = 4) -> int:
    """The smallest multiple that is at least `n` (and at least one multiple)."""
    return max(multiple, math.ceil(n / multiple) * multiple)
