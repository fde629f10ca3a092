"""A minimiser of your own: the heavy ball, a gradient step with momentum (Polyak, 1964).

RelaxConfig(minimiser=HeavyBall(eta=0.02, beta=0.8))
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Ball(NamedTuple):
    """State of one structure: every minimiser has `position` and `force`."""

    position: jax.Array  # (rows, 3) Å, atoms and strain
    force: jax.Array  # eV/Å
    change: jax.Array  # Å, of the last step


@dataclass(frozen=True)
class HeavyBall:
    """x <- x + η F + β (x - x before)."""

    eta: float = 0.02  # Å²/eV
    beta: float = 0.8

    def numbers(self, dtype):
        """What can be learned (losses.with_minimiser)."""
        return {"eta": jnp.asarray(self.eta, dtype), "beta": jnp.asarray(self.beta, dtype)}

    def init(self, numbers, z, force):
        """At rest."""
        return Ball(z, force, jnp.zeros_like(z))

    def propose(self, numbers, state, kinds):
        """Where the next force is wanted. The caller keeps what is fixed in its place."""
        return state.position + numbers["eta"] * state.force + numbers["beta"] * state.change

    def step(self, numbers, state, z, force):
        """The state at z, where the force has been evaluated."""
        return Ball(z, force, z - state.position)
