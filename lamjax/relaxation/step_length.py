"""How far a step may move an atom."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lamjax import numerics


def limited(change: Float[Array, "rows 3"], max_step) -> Float[Array, "rows 3"]:
    """A step, scaled down as a whole so that no row is longer than `max_step` (Å; None: no limit)."""
    if max_step is None:
        return change
    longest = jnp.max(numerics.safe_norm(change))
    far = longest > max_step
    return change * jnp.where(far, max_step / jnp.where(far, longest, 1), 1).astype(change.dtype)


def check_max_step(max_step: float | None) -> None:
    """ValueError for a limit that lets nothing move."""
    if max_step is not None and not max_step > 0:
        raise ValueError(f"max_step is {max_step} Å; it must be positive, or None for no limit.")
