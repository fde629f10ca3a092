"""How a relaxation steps, driven from outside: a minimiser proposes coordinates and is told the forces there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lamjax import numerics
from lamjax.factories import factory
from lamjax.imports import jax_md

N_NUMBERS = 119  # atomic numbers and 0


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
    type: Literal["fire"] = "fire"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if not (0 < self.dt_start <= self.dt_max and self.f_inc >= 1 and 0 < self.f_dec < 1):
            raise ValueError(f"FIRE needs 0 < dt_start <= dt_max, f_inc >= 1 and 0 < f_dec < 1, got {self}.")
        _check_max_step(self.max_step)


@dataclass(frozen=True)
class GradientFlowConfig:
    """x <- x + η F + b: the iterated map of Dramko et al. (arXiv 2512.01067), slow but without memory.

    b is a vector for each element, zero until it is learned (`additive`).
    """

    eta: float = 0.02  # Å²/eV; stable below 2 over the largest curvature, some 50 eV/Å² in covalent crystals
    additive: bool = False
    max_step: float | None = 0.2  # Å
    type: Literal["gradient_flow"] = "gradient_flow"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.eta <= 0:
            raise ValueError(f"eta is {self.eta} Å²/eV; it must be positive.")
        _check_max_step(self.max_step)


MinimiserConfig = FireConfig | GradientFlowConfig


class Minimiser(NamedTuple):
    """The pure functions of one minimiser. Every state has `position`, `force` and what else it remembers."""

    numbers: Callable[..., dict[str, jax.Array]]  # (dtype) -> what can be learned
    init: Callable[..., Any]  # (numbers, z, force) -> state at rest
    propose: Callable[..., jax.Array]  # (numbers, state, atomic numbers) -> where it wants to know the force
    step: Callable[..., Any]  # (numbers, state, z, force there) -> state there


class FlowState(NamedTuple):
    """Of the gradient flow, which remembers nothing."""

    position: Float[Array, "rows 3"]  # Å
    force: Float[Array, "rows 3"]  # eV/Å


@factory
def minimiser(config: MinimiserConfig) -> Minimiser:
    """The functions of a config."""
    match config:
        case FireConfig():
            return _fire(config)
        case GradientFlowConfig():
            return _gradient_flow(config)
    raise TypeError(f"Unknown minimiser {config!r}; known: FireConfig, GradientFlowConfig.")


def _fire(config: FireConfig) -> Minimiser:
    """FIRE in free space (positions are unwrapped and Cartesian), jax-md's `minimize.fire_descent`.

    A velocity-Verlet step asks for the forces once, at positions that do not depend on them. So the new positions are
    read from a step with any forces, and the caller evaluates energy, forces and neighbours there.
    """
    learned = ("dt_start", "alpha_start")
    settings = {name: value for name, value in vars(config).items() if name not in ("max_step", "type")}
    minimize, space = jax_md().minimize, jax_md().space  # late, for it takes a second
    # jax-md makes arrays of its settings: values even inside a trace, for rules of differentiation outlive the trace
    with jax.ensure_compile_time_eval():
        _, apply = minimize.fire_descent(_told, _limited_shift(space, config.max_step), **settings)

    def numbers(dtype) -> dict:
        return {name: jnp.asarray(settings[name], dtype) for name in learned}

    def init(numbers, z, force):
        return minimize.FireDescentState(
            position=z,
            momentum=jnp.zeros_like(z),
            force=force,
            mass=jnp.ones((), z.dtype),
            dt=numbers["dt_start"].astype(z.dtype),
            alpha=numbers["alpha_start"].astype(z.dtype),
            n_pos=jnp.zeros((), jnp.int32),
        )

    def propose(numbers, state, atomic_numbers):
        return apply(state, forces=jnp.zeros_like(state.force)).position

    def step(numbers, state, z, force):
        new = apply(state, forces=force)
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)  # jax-md's constants may widen dt and alpha
        uphill = new.n_pos == 0  # then jax-md goes back to the alpha of its config
        return new.set(alpha=jnp.where(uphill, numbers["alpha_start"].astype(z.dtype), new.alpha))

    return Minimiser(numbers, init, propose, step)


def _gradient_flow(config: GradientFlowConfig) -> Minimiser:
    def numbers(dtype) -> dict:
        found = {"eta": jnp.asarray(config.eta, dtype)}
        return found | ({"additive": jnp.zeros((N_NUMBERS, 3), dtype)} if config.additive else {})

    def propose(numbers, state: FlowState, atomic_numbers):
        change = numbers["eta"].astype(state.force.dtype) * state.force
        if config.additive:
            change = change.at[:-3].add(numbers["additive"].astype(change.dtype)[atomic_numbers])
        return state.position + _limited(change, config.max_step)

    return Minimiser(
        numbers,
        init=lambda numbers, z, force: FlowState(z, force),
        propose=propose,
        step=lambda numbers, state, z, force: FlowState(z, force),
    )


def _told(positions, forces, **unused):
    """jax-md's force function: the forces are given."""
    return forces


def _limited_shift(space, max_step: float | None):
    """x + dx in free space, dx limited."""
    _, shift = space.free()
    return lambda positions, change, **kwargs: shift(positions, _limited(change, max_step), **kwargs)


def _limited(change, max_step: float | None):
    """A step, scaled down so that no row is longer than `max_step`."""
    if max_step is None:
        return change
    longest = jnp.max(numerics.safe_norm(change))
    far = longest > max_step
    return change * jnp.where(far, max_step / jnp.where(far, longest, 1), 1).astype(change.dtype)


def _check_max_step(max_step: float | None) -> None:
    if max_step is not None and max_step <= 0:
        raise ValueError(f"max_step is {max_step} Å; it must be positive, or None for no limit.")
