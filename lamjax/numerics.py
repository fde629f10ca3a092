"""Functions whose derivatives stay finite at zero, at the cutoff and on padding; how programs are compiled."""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

# On a processor large programs run about as fast as with XLA's default (3) and are compiled in less time. XLA's fusion
# emitters stay on: without them a sum into atoms, the transpose of a gather, is a loop of a dozen calls for each pair.
# Vectors are as wide as AVX-512 has them: XLA alone stops at 256 bits.
QUICKLY = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}
_SQUARINGS, _TERMS = 5, 9  # of expm: (3/32)^10/10! is 1e-17


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sqrt(x) with value and derivative 0 where x <= 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_norm(x: Float[Array, "*shape n"], axis: int = -1, keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean norm along `axis`, with value and derivative 0 at the zero vector."""
    return safe_sqrt(jnp.sum(x * x, axis=axis, keepdims=keepdims))


def switch(r: Float[Array, "*shape"], start: float, cutoff: float) -> Float[Array, "*shape"]:
    """w(r) = 1 - 10u³ + 15u⁴ - 6u⁵, u = (r - start)/(cutoff - start) in [0, 1]: 1 below start, 0 beyond cutoff, C²."""
    u = jnp.clip((r - start) / (cutoff - start), 0, 1)
    return 1 + u * u * u * (-10 + u * (15 - 6 * u))


def exponential_switch(r: Float[Array, "*shape"], start: float, cutoff: float) -> Float[Array, "*shape"]:
    """w(r) = exp(-exp(20 (r - start)/start)), r at most the cutoff: smooth, but not quite zero at the cutoff."""
    return jnp.exp(-jnp.exp(20 * (jnp.minimum(r, cutoff) - start) / start))


def widest_float() -> np.dtype:
    """float64 where x64 is on, else float32: the type in which energies are summed."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def expm(x: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """exp of a small matrix (norm below about 3, such as a strain) to rounding, by squaring a Taylor polynomial.

    jax.scipy.linalg.expm chooses among Padé approximants by the norm; under vmap it computes them all, with a linear
    solve each, in every step of a relaxation. This one is a polynomial: cheap, and differentiable to any order.
    """
    scaled, total = x / 2**_SQUARINGS, jnp.eye(3, dtype=x.dtype)
    for k in range(_TERMS, 0, -1):  # Horner: 1 + x (1 + x/2 (1 + x/3 ...))
        total = jnp.eye(3, dtype=x.dtype) + scaled @ total / k
    for _ in range(_SQUARINGS):
        total = total @ total
    return total


def matmul_precision(name: str | None) -> AbstractContextManager:
    """A context of a precision of matrix products, as jax.default_matmul_precision; None: the one that is set."""
    return nullcontext() if name is None else jax.default_matmul_precision(name)


@cache
def compiler_options() -> dict[str, Any]:
    """Options of jax.jit for large programs: `QUICKLY` on a processor, if this XLA knows these options."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=QUICKLY)()
    except jax.errors.JaxRuntimeError:
        return {}
    return QUICKLY


def memory() -> int | None:
    """Bytes of memory of the device that jax computes on by default; None where it is not known."""
    if jax.default_backend() != "cpu":
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no such function
        return None


def whole_blocks(size: int, arrays: PyTree) -> PyTree:
    """Arrays with a row for every atom, with copies of the last row behind, so that `in_blocks` need not add any."""
    n = len(jax.tree.leaves(arrays)[0])
    return jax.tree.map(partial(_with_rows, math.prod(_blocks(n, size))), arrays)


def in_blocks(function: Callable, size: int, *arrays: PyTree) -> Any:
    """`function` of arrays with a row for every atom, at most `size` rows at a time; the same numbers in less memory.

    `function` takes pytrees of arrays (n, ...) to such a pytree, row by row. What happens inside a block is kept
    for no gradient but computed again, so that memory holds the intermediates of one block.
    """
    n = len(jax.tree.leaves(arrays)[0])
    if n <= size:
        return function(*arrays)
    n_blocks, size = _blocks(n, size)
    kept = jax.checkpoint(function, prevent_cse=False)  # a loop: nothing is computed twice in it anyway

    def cut(x: Array) -> Array:
        return _with_rows(n_blocks * size, x).reshape(n_blocks, size, *x.shape[1:])

    results = jax.lax.map(lambda block: kept(*block), jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.reshape(n_blocks * size, *x.shape[2:])[:n], results)


def _blocks(n: int, size: int) -> tuple[int, int]:
    """The number of blocks of at most `size` rows for n rows, and the rows of each, as even as possible."""
    n_blocks = max(1, -(-n // size))
    return n_blocks, -(-n // n_blocks)


def _with_rows(n: int, x: Array) -> Array:
    """x (m, ...) with its last row repeated up to n rows."""
    if len(x) == n:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(x[-1:], (n - len(x), *x.shape[1:]))])
