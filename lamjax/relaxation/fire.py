"""jax-md's FIRE, one structure at a time, driven from outside: it proposes positions and is told the forces there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lamjax import numerics


@dataclass(frozen=True)
class FireConfig:
    """Parameters of FIRE in jax-md's names; masses are 1, so that dt² has the unit Å²/eV.

    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), 10.1103/PhysRevLett.97.170201.
    """

    dt_start: float = 0.1
    dt_max: float = 0.4
    n_min: int = 5  # downhill steps before dt grows
    f_inc: float = 1.1
    f_dec: float = 0.5
    alpha_start: float = 0.1
    f_alpha: float = 0.99
    max_step: float | None = 0.2  # Å, the farthest that an atom moves in one step; a longer step is scaled as a whole
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if not (0 < self.dt_start <= self.dt_max and self.f_inc >= 1 and 0 < self.f_dec < 1):
            raise ValueError(f"FIRE needs 0 < dt_start <= dt_max, f_inc >= 1 and 0 < f_dec < 1, got {self}.")
        if self.max_step is not None and self.max_step <= 0:
            raise ValueError(f"max_step is {self.max_step} Å; it must be positive, or None for no limit.")


class Fire(NamedTuple):
    """The pure functions of one minimiser; `state` is jax-md's FireDescentState."""

    init: Callable[..., Any]  # (positions, forces) -> state at rest
    propose: Callable[..., jax.Array]  # state -> the positions where it wants to know the forces
    step: Callable[..., Any]  # (state, forces at the proposed positions) -> state there


def fire(config: FireConfig = FireConfig()) -> Fire:
    """FIRE in free space (positions are unwrapped and Cartesian), jax-md's `minimize.fire_descent`.

    A velocity-Verlet step asks for the forces once, at positions that do not depend on them. So the new positions are
    read from a step with any forces, and the caller evaluates energy, forces and neighbours there.
    """
    settings = {name: value for name, value in vars(config).items() if name != "max_step"}
    minimize, space = _jax_md()
    _, apply = minimize.fire_descent(_told, _limited_shift(space, config.max_step), **settings)

    def init(positions, forces):
        scalar = lambda x: jnp.asarray(x, positions.dtype)  # noqa: E731
        return minimize.FireDescentState(
            position=positions,
            momentum=jnp.zeros_like(positions),
            force=forces,
            mass=scalar(1),
            dt=scalar(config.dt_start),
            alpha=scalar(config.alpha_start),
            n_pos=jnp.zeros((), jnp.int32),
        )

    def propose(state):
        return apply(state, forces=jnp.zeros_like(state.force)).position

    def step(state, forces):
        new = apply(state, forces=forces)
        return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)  # jax-md's constants may widen dt and alpha

    return Fire(init, propose, step)


def _jax_md():
    """The modules minimize and space of jax-md, imported on first use.

    Importing jax-md takes seconds (it imports its neural networks) and runs a computation, after which
    `jax.distributed.initialize` is no longer possible (jax-md 0.2.29).
    """
    from jax_md import minimize, space

    return minimize, space


def _told(positions, forces, **unused):
    """jax-md's force function: the forces are given."""
    return forces


def _limited_shift(space, max_step: float | None):
    """x + dx in free space, dx scaled down so that no atom moves farther than `max_step`."""
    _, shift = space.free()
    if max_step is None:
        return shift

    def limited(positions, change, **kwargs):
        longest = jnp.max(numerics.safe_norm(change))
        scale = jnp.where(longest > max_step, max_step / jnp.where(longest > max_step, longest, 1), 1)
        return shift(positions, change * scale.astype(change.dtype), **kwargs)

    return limited
