"""Interface of descriptors: a function from neighbours to one feature vector per atom, and its first parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from lamjax import nn
from lamjax.descriptors.electrons import spin_orbitals
from lamjax.neighbors import Neighbors, Shell


class DescriptorInput(NamedTuple):
    """Atoms and their neighbours as a descriptor sees them."""

    types: Int[Array, " n_atoms"]
    neighbors: Neighbors
    displacements: Float[Array, "n_atoms capacity 3"]  # Å, from an atom to its neighbours
    first: Any = 0  # the first atom of the structure; of each atom where there are several structures
    charge_spin: Float[Array, "*n_atoms 2"] | None = None  # charge and multiplicity of the structure; likewise


class Descriptor(NamedTuple):
    """Pure functions of a descriptor; made by a factory from a frozen config."""

    config: Any
    shells: tuple[Shell, ...]  # the cutoffs it looks at, widest first
    width: int  # features per atom
    receptive_field: float  # Å; atoms farther away do not change the features
    init: Callable  # (key, dtype) -> params
    apply: Callable  # (params, atom_inputs) -> features (n_atoms, width)
    # (params, n_atoms, capacities) -> the least bytes that forces keep in memory; None: never too many
    kept: Callable | None = None
    forward_over_reverse: bool = (
        False  # derivatives of forces by parameters take less time so than reverse over reverse
    )


def type_inputs(elements: tuple[str, ...], use_econf_tebd: bool) -> np.ndarray:
    """Inputs of the type embedding (n_types, n_inputs): one-hot vectors, or electronic configurations."""
    return spin_orbitals(elements) if use_econf_tebd else np.eye(len(elements))


def type_embedding_init(
    key: Array, inputs: np.ndarray, dim: int, bias: bool, dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """Parameters of the table that gives every element a vector of `dim` numbers."""
    return nn.linear_init(key, inputs.shape[1], dim, bias=bias, dtype=dtype)


def type_embedding(params: PyTree, inputs: np.ndarray) -> Float[Array, "n_types_and_padding dim"]:
    """T = X W (+ b) with DeePMD-kit's residual; the last row, of the padding type, is zero."""
    table = nn.dense(params, jnp.asarray(inputs, params["w"].dtype), lambda x: x)
    return jnp.pad(table, ((0, 1), (0, 0)))


def allowed_pairs(exclude_types: tuple[tuple[int, int], ...], n_types: int) -> np.ndarray | None:
    """(n_types + 1, n_types + 1) table, False for excluded pairs of types; None if nothing is excluded."""
    if not exclude_types:
        return None
    allowed = np.ones((n_types + 1, n_types + 1), bool)
    for a, b in exclude_types:
        allowed[a, b] = allowed[b, a] = False
    return allowed


def mask_excluded(mask: Array, types: Array, indices: Array, allowed: np.ndarray | None) -> Array:
    """The mask without the slots whose pair of types is excluded."""
    if allowed is None:
        return mask
    return mask & jnp.asarray(allowed)[types[:, None], types[indices[:, : mask.shape[1]]]]


def split_neighbors(neighbors: Neighbors, types: Int[Array, " n_atoms"], shell: int) -> tuple[Array, Array, Any]:
    """indices, types and mask of the prefix of the list that belongs to one shell."""
    mask = neighbors.masks[shell]
    indices = neighbors.indices[:, : mask.shape[1]]
    return indices, types[indices], mask
