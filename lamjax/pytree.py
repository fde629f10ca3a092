"""Operations on whole pytrees: stacking, choosing, norms, names of leaves."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree


def stack(trees: Sequence[PyTree]) -> PyTree:
    """One pytree with a new leading axis out of many of equal structure and shapes (numpy stays numpy)."""
    if len(trees) == 1:
        return jax.tree.map(lambda leaf: _module(leaf).asarray(leaf)[None], trees[0])  # no copy
    return jax.tree.map(lambda *leaves: _module(leaves[0]).stack(leaves), *trees)


def take(tree: PyTree, index: Any) -> PyTree:
    """`leaf[index]` for every leaf: one element (or a slice) of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def where(condition: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leafwise `jnp.where`; `condition` is broadcast from the left: one flag a structure chooses structures."""

    def select(a: Any, b: Any) -> Array:
        a = jnp.asarray(a)
        return jnp.where(jnp.reshape(condition, jnp.shape(condition) + (1,) * (a.ndim - jnp.ndim(condition))), a, b)

    return jax.tree.map(select, on_true, on_false)


def global_norm(tree: PyTree) -> Array:
    """sqrt of the sum of squares over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def contents(tree: PyTree) -> Iterator[bytes]:
    """Type, shape and numbers of every leaf, for digests: different where any number differs."""
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        yield f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()


def cast(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """Every floating leaf as `dtype`; integers and booleans untouched."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def n_parameters(tree: PyTree) -> int:
    """Number of scalars in all leaves."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def path_name(path: Any) -> str:
    """`repformer/layers/0/linear1/w` for a key path of `jax.tree_util`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _module(leaf: Any) -> PyTree:
    return jnp if isinstance(leaf, jax.Array) else np
