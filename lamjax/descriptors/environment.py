"""The switch and the environment matrix, DeePMD's local frame-free coordinates of the neighbours."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics
from lamjax.neighbors import Neighbors


class Switch(NamedTuple):
    """The radial function w(r)/(r + protection) of an environment matrix: w falls from 1 to 0 between two distances."""

    rcut: float  # Å
    rcut_smth: float  # Å, where the fall begins
    protection: float = 0.0  # Å
    exponential: bool = False  # the kind of w


class Environment(NamedTuple):
    """The neighbours of one block of a descriptor, and its environment matrix."""

    matrix: Float[Array, "n_atoms capacity 4"]  # normalised R_ij, 0 on padding
    switch: Float[Array, "n_atoms capacity"]  # w(r_ij), 0 on padding
    mask: Bool[Array, "n_atoms capacity"]


class ShellView(NamedTuple):
    """The neighbours within one shell as a block sees them."""

    indices: Int[Array, "n_atoms capacity"]
    types: Int[Array, "n_atoms capacity"]
    displacements: Float[Array, "n_atoms capacity 3"]  # Å
    env: Environment


class Block(NamedTuple):
    """A part of a descriptor that normalises its environment matrix, and how it takes the statistics from data."""

    name: str  # below it, in the descriptor's parameters, lie the `statistics`
    rcut: float  # Å
    rcut_smth: float  # Å
    sel: int
    zero_mean: bool  # the mean is not subtracted, only the scale is used
    exponential: bool = False  # the kind of the switch
    stddev: float | None = None  # a constant in place of the data's


class Empty(NamedTuple):
    """Slots without a neighbour where they count: in DeePMD-kit they are -mean/stddev, not zero, if there is a mean."""

    number: Int[Array, " n_atoms"]
    type: Int[Array, "*n_atoms"]  # that of the structure's first atom


def empty_slots(zero_mean: bool, sel: int, neighbors: Neighbors, types: Array, first: Any) -> Empty | None:
    """The empty ones of `sel` slots; None where they are zero. Slots of excluded pairs are neither."""
    return None if zero_mean else Empty(sel - jnp.sum(neighbors.mask, axis=1), types[first])


def raw_rows(displacements: Array, switch: Switch) -> tuple[Array, Array]:
    """e_ij = (w/(r+p), w d/(r+p)²) and w(r_ij), not masked. Zhang et al. 2024, eq. 3; `dpa1`'s rows."""
    r = numerics.safe_norm(displacements)
    w = (numerics.exponential_switch if switch.exponential else numerics.switch)(r, switch.rcut_smth, switch.rcut)
    inverse = w / (r + switch.protection)
    angular = displacements * (inverse / (r + switch.protection))[..., None]
    return jnp.concatenate([inverse[..., None], angular], axis=-1), w


def environment_matrix(
    displacements: Float[Array, "n_atoms capacity 3"],
    mask: Bool[Array, "n_atoms capacity"],
    types: Int[Array, " n_atoms"],
    statistics: dict,
    switch: Switch,
) -> Environment:
    """R_ij = (e_ij - mean[t_i]) / stddev[t_i] with the switch; everything 0 where `mask` is False."""
    rows, w = raw_rows(displacements, switch)
    mean, stddev = per_atom(statistics, types)
    matrix = jnp.where(mask[..., None], (rows - mean[:, None, :]) / stddev[:, None, :], 0)
    return Environment(matrix, jnp.where(mask, w, 0), mask)


def padding_rows(statistics: dict, types: Int[Array, " n_atoms"]) -> Float[Array, "n_atoms 4"]:
    """R of an empty slot in DeePMD-kit, -mean/stddev: not zero where the statistics have a mean."""
    mean, stddev = per_atom(statistics, types)
    return -mean / stddev


def statistics_init(n_types: int, dtype: DTypeLike | None = None, stddev: float = 1.0) -> dict:
    """Mean 0 and standard deviation 1 until statistics are taken from data; or a constant that stays."""
    return {"mean": jnp.zeros((n_types, 4), dtype), "stddev": jnp.full((n_types, 4), stddev, dtype)}


def per_atom(statistics: dict, types: Array) -> tuple:
    """mean and stddev (n_atoms, 4) of each atom's type; padding atoms borrow the last type's."""
    index = jnp.minimum(types, statistics["mean"].shape[0] - 1)
    return statistics["mean"][index], statistics["stddev"][index]
