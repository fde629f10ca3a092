"""Residual sums of the updates of a layer: averages, increments, or residual vectors."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from lamjax import nn


def residuals_init(key: Array, number: int, width: int, size: float, kind: str, dtype: DTypeLike | None = None) -> list:
    """`number` residual vectors: all `size` ("const"), or N(0, size) ("norm")."""
    if kind == "const":
        return [jnp.full(width, size, dtype) for _ in range(number)]
    return [size * nn.normal(k, (width,), dtype) for k in nn.split(key, number)]


def combine(style: str, residuals: Any, terms: Any) -> Any:
    """u0 with its updates: their average, increments over sqrt, or residual vectors matched by position."""
    base, *updates = terms
    if not updates:
        return base
    if style == "res_avg":
        return sum(updates, base) / len(terms) ** 0.5
    if style == "res_incr":
        return base + sum(updates) / len(updates) ** 0.5
    return base + sum(v * u for v, u in zip(residuals, updates, strict=True))
