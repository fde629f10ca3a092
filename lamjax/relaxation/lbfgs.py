"""L-BFGS: steps by an inverse Hessian that the last few steps and changes of the force tell of."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from pydantic import Field

from lamjax import numerics
from lamjax.config import configuration
from lamjax.relaxation.coordinates import Rows
from lamjax.relaxation.step_length import FARTHEST, limited

LEAST_COSINE = 1e-3  # between force and step; below it the step is one along the force


class LBFGSState(NamedTuple):
    """The state of L-BFGS for one structure; pairs are sorted, the newest first, and 0 where there are none yet."""

    position: Rows  # Å
    force: Rows  # eV/Å
    steps: Float[Array, "memory rows 3"]  # s, Å
    changes: Float[Array, "memory rows 3"]  # y, of the slope over these steps, eV/Å
    radius: Float[Array, ""]  # Å, the farthest that an atom may move in the next step


@configuration
class LBFGSConfig:
    """Parameters of limited-memory BFGS with one force per step, without a line search.

    Liu, Nocedal, Math. Program. 45, 503 (1989), 10.1007/BF01589116; the first inverse Hessian of every step is s·y/y·y
    of the newest pair (Nocedal, Wright, Numerical Optimization, eq. 7.20). Pairs of less than the `softest` curvature
    (of negative curvature, or of noise) are left out, so that the inverse Hessian is positive and steps go downhill.
    What a line search would look for is estimated from the forces at both ends of a step: if they say that the energy
    has risen, -(F + F')·s/2 > 0, the next step is half as long at most; after good steps the limit grows again to
    `max_step`.
    """

    memory: Annotated[int, Field(ge=1, description="pairs (s, y)")] = 10
    curvature: Annotated[float, Field(gt=0, description="eV/Å², of the first step, along the force")] = 30.0
    softest: Annotated[float, Field(gt=0, description="eV/Å², s·y/s·s of a pair that counts")] = 0.01
    max_step: Annotated[float, FARTHEST] = 0.2
    type: Literal["lbfgs"] = "lbfgs"

    def numbers(self, dtype: DTypeLike) -> dict[str, Array]:
        """The curvature that the first step is made for."""
        return {"curvature": jnp.asarray(self.curvature, dtype)}

    def init(self, numbers: dict[str, Array], z: Rows, force: Rows) -> LBFGSState:
        """Without pairs."""
        none = jnp.zeros((self.memory, *z.shape), z.dtype)
        return LBFGSState(z, force, none, none, jnp.asarray(self.max_step, z.dtype))

    def propose(self, numbers: dict[str, Array], state: LBFGSState, kinds: Int[Array, " n_atoms"]) -> Rows:
        """The end of the step, which is one along the force if the pairs' is not downhill."""
        force = state.force
        scale = _scale(state, 1 / numbers["curvature"].astype(force.dtype))
        step = inverse_hessian_product(state, scale, force)
        lengths = jnp.sum(force * force) * jnp.sum(step * step)
        downhill = jnp.sum(force * step) > LEAST_COSINE * numerics.safe_sqrt(lengths)
        return state.position + limited(jnp.where(downhill, step, scale * force), state.radius)

    def step(self, numbers: dict[str, Array], state: LBFGSState, z: Rows, force: Rows) -> LBFGSState:
        """The new place, the pair of the step to it, and how far the next one may go."""
        s, y = z - state.position, state.force - force
        counts = jnp.sum(s * y) > self.softest * jnp.sum(s * s)
        return LBFGSState(
            position=z,
            force=force,
            steps=_with(state.steps, s, counts),
            changes=_with(state.changes, y, counts),
            radius=self._radius(state, s, force),
        )

    def _radius(self, state: LBFGSState, s: Rows, force: Rows) -> Float[Array, ""]:
        """Half the length of a step that led uphill, more than before after a good one (Å)."""
        before, after = jnp.sum(state.force * s), jnp.sum(force * s)
        longest = jnp.max(numerics.safe_norm(s))
        grown = jnp.where(after > -before / 2, jnp.minimum(2 * state.radius, self.max_step), state.radius)
        return jnp.where(after < -before, jnp.maximum(longest / 2, 1e-3 * self.max_step), grown).astype(s.dtype)


def inverse_hessian_product(state: LBFGSState, scale: Float[Array, ""], v: Rows) -> Rows:
    """H⁻¹ v of the pairs, over `scale` times the identity, by the recursion of two loops.

    Nocedal, Math. Comput. 35, 773 (1980); Nocedal, Wright, algorithm 7.4.
    """
    s, y = state.steps, state.changes
    used, curvature = _used(state)
    weight = jnp.where(used, 1 / curvature, 0)

    def newest_first(v: Array, pair: tuple) -> tuple[Array, Array]:
        s, y, weight = pair
        share = weight * jnp.sum(s * v)
        return v - share * y, share

    def oldest_first(v: Array, pair: tuple) -> tuple[Array, None]:
        s, y, weight, share = pair
        return v + s * (share - weight * jnp.sum(y * v)), None

    v, shares = jax.lax.scan(newest_first, v, (s, y, weight))
    return jax.lax.scan(oldest_first, scale * v, (s, y, weight, shares), reverse=True)[0]


def _scale(state: LBFGSState, first: Float[Array, ""]) -> Float[Array, ""]:
    """s·y/y·y of the newest pair (Å²/eV); `first` where there is none."""
    used, curvature = _used(state)
    square = jnp.where(used[0], jnp.sum(state.changes[0] * state.changes[0]), 1)
    return jnp.where(used[0], curvature[0] / square, first)


def _used(state: LBFGSState) -> tuple[Bool[Array, " memory"], Float[Array, " memory"]]:
    """Which pairs there are, and their s·y (eV); 1 where there is none."""
    product = jnp.sum(state.steps * state.changes, axis=(1, 2))
    return product > 0, jnp.where(product > 0, product, 1)


def _with(pairs: Float[Array, "memory rows 3"], new: Rows, counts: Bool[Array, ""]) -> Float[Array, "memory rows 3"]:
    """A further one in front of the pairs, the oldest dropped, if it counts."""
    return jnp.where(counts, jnp.concatenate([new[None], pairs[:-1]]), pairs)
