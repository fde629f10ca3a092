"""Functions whose derivatives stay finite at zero, at the cutoff and on padding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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


def widest_float() -> np.dtype:
    """float64 where x64 is on, else float32: the type in which energies are summed."""
    return jax.dtypes.canonicalize_dtype(np.float64)
