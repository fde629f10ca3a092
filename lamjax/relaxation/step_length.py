"""Limits on the length of a step."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from lamjax import numerics
from lamjax.relaxation.coordinates import Rows

# of the `max_step` of a minimiser
FARTHEST = Field(gt=0, description="Å, the farthest that an atom moves in one step; a longer step is scaled as a whole")


def limited(change: Rows, max_step: float | Float[Array, ""]) -> Rows:
    """A step, scaled down as a whole so that no row is longer than `max_step` (Å; None: no limit)."""
    if max_step is None:
        return change
    longest = jnp.max(numerics.safe_norm(change))
    far = longest > max_step
    return change * jnp.where(far, max_step / jnp.where(far, longest, 1), 1).astype(change.dtype)
