"""Minimisers: they propose coordinates and are given the forces there.

A minimiser of your own is a frozen dataclass with the four methods of `Minimiser`, put into RelaxConfig(minimiser=...).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int
from pydantic import Field

from lamjax.arguments import describe
from lamjax.config import configuration, or_own
from lamjax.imports import jax_md
from lamjax.relaxation.coordinates import Rows
from lamjax.relaxation.lbfgs import LBFGSConfig
from lamjax.relaxation.step_length import FARTHEST, limited

N_NUMBERS = 119  # atomic numbers and 0


class Minimiser(Protocol):
    """Pure functions of one structure; `state` is a pytree of arrays with `position` and `force` among its fields."""

    def numbers(self, dtype: DTypeLike) -> dict[str, Array]:
        """Numbers of the minimiser that can be learned, by name."""
        ...

    def init(self, numbers: dict[str, Array], z: Rows, force: Rows) -> Any:
        """The state at rest at coordinates z (Å) with this force (eV/Å)."""
        ...

    def propose(self, numbers: dict[str, Array], state: Any, kinds: Int[Array, " n_atoms"]) -> Rows:
        """The coordinates at which the force is wanted next; `kinds` are atomic numbers."""
        ...

    def step(self, numbers: dict[str, Array], state: Any, z: Rows, force: Rows) -> Any:
        """The state at the coordinates z that were proposed, of the force there; where nothing may move z stayed."""
        ...


def minimiser(config: Minimiser) -> Minimiser:
    """The config itself, which has the functions of a minimiser; TypeError for what has them not."""
    names, is_class = ("numbers", "init", "propose", "step"), isinstance(config, type)
    missing = [name for name in names if is_class or not callable(getattr(config, name, None))]
    if missing:
        raise TypeError(
            "A minimiser is a FireConfig, LBFGSConfig, GradientFlowConfig or a frozen dataclass of your own with the "
            f"methods of relaxation.minimisers.Minimiser; {describe(config)} lacks {', '.join(missing)}."
        )
    return config


@configuration
class FireConfig:
    """Parameters of FIRE in jax-md's names; masses are 1, so that dt² has the unit Å²/eV.

    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), 10.1103/PhysRevLett.97.170201. The steps are those of jax-md's
    `minimize.fire_descent` in free space (positions are unwrapped and Cartesian).
    """

    dt_start: Annotated[float, Field(gt=0, description="the first time step")] = 0.1
    dt_max: Annotated[float, Field(gt=0, description="the longest time step, at least dt_start")] = 0.4
    n_min: Annotated[int, Field(ge=0, description="downhill steps before dt grows")] = 5
    f_inc: Annotated[float, Field(ge=1, description="by which dt grows")] = 1.1
    f_dec: Annotated[float, Field(gt=0, lt=1, description="by which dt shrinks uphill")] = 0.5
    alpha_start: Annotated[float, Field(ge=0, le=1, description="the first share of the force in the velocity")] = 0.1
    f_alpha: Annotated[float, Field(gt=0, le=1, description="by which this share shrinks downhill")] = 0.99
    max_step: Annotated[float | None, FARTHEST] = 0.2
    type: Literal["fire"] = "fire"

    def __post_init__(self) -> None:
        if self.dt_start > self.dt_max:
            raise ValueError(f"FIRE needs dt_start <= dt_max, got {self.dt_start} and {self.dt_max}.")

    def numbers(self, dtype: DTypeLike) -> dict[str, Array]:
        """First time step and first mixing of velocity and force."""
        return {name: jnp.asarray(getattr(self, name), dtype) for name in ("dt_start", "alpha_start")}

    def init(self, numbers: dict[str, Array], z: Rows, force: Rows) -> Any:
        """At rest."""
        return jax_md().minimize.FireDescentState(
            position=z,
            momentum=jnp.zeros_like(z),
            force=force,
            mass=jnp.ones((), z.dtype),
            dt=numbers["dt_start"].astype(z.dtype),
            alpha=numbers["alpha_start"].astype(z.dtype),
            n_pos=jnp.zeros((), jnp.int32),
        )

    def propose(self, numbers: dict[str, Array], state: Any, kinds: Int[Array, " n_atoms"]) -> Rows:
        """The end of a velocity-Verlet step, whose positions do not depend on the force at them."""
        return _fire_descent(self)(state, force=jnp.zeros_like(state.force)).position

    def step(self, numbers: dict[str, Array], state: Any, z: Rows, force: Rows) -> Any:
        """The step to z, with the force there."""
        new = _fire_descent(self)(state, force=force, place=z)
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)  # jax-md's constants may widen dt and alpha
        uphill = new.n_pos == 0  # then jax-md goes back to the alpha of its config
        return new.set(alpha=jnp.where(uphill, numbers["alpha_start"].astype(z.dtype), new.alpha))


@configuration
class GradientFlowConfig:
    """x <- x + η F + b: the iterated map of Dramko et al. (arXiv 2512.01067), slow but without memory.

    b is a vector for each element, zero until it is learned (`additive`).
    """

    eta: Annotated[
        float,
        Field(gt=0, description="Å²/eV; stable below 2 over the largest curvature, some 50 eV/Å² in covalent crystals"),
    ] = 0.02
    additive: Annotated[bool, Field(description="whether b is learned too")] = False
    max_step: Annotated[float | None, FARTHEST] = 0.2
    type: Literal["gradient_flow"] = "gradient_flow"

    def numbers(self, dtype: DTypeLike) -> dict[str, Array]:
        """η, and b of every element."""
        bias = {"additive": jnp.zeros((N_NUMBERS, 3), dtype)} if self.additive else {}
        return {"eta": jnp.asarray(self.eta, dtype)} | bias

    def init(self, numbers: dict[str, Array], z: Rows, force: Rows) -> "FlowState":
        """Nothing else is remembered."""
        return FlowState(z, force)

    def propose(self, numbers: dict[str, Array], state: "FlowState", kinds: Int[Array, " n_atoms"]) -> Rows:
        """x + η F + b."""
        change = numbers["eta"].astype(state.force.dtype) * state.force
        if self.additive:
            change = change.at[:-3].add(numbers["additive"].astype(change.dtype)[kinds])
        return state.position + limited(change, self.max_step)

    def step(self, numbers: dict[str, Array], state: "FlowState", z: Rows, force: Rows) -> "FlowState":
        """The new place."""
        return FlowState(z, force)


class FlowState(NamedTuple):
    """The state of the gradient flow: coordinates and force."""

    position: Rows  # Å
    force: Rows  # eV/Å


# or whatever else has these functions
MinimiserConfig = Annotated[FireConfig | LBFGSConfig | GradientFlowConfig, or_own(minimiser)]


@lru_cache(maxsize=64)
def _fire_descent(config: FireConfig) -> Callable:
    """jax-md's step (state, force, place=None) -> state, to `place`, or as far as FIRE goes.

    Its step is a program of its own (jax.jit) that gives back its state alone. A relaxation wants energy, virial and
    neighbours of the same evaluation, and evaluates a batch at once where FIRE is one structure's. So the place is read
    from a step with any force, and the caller evaluates there.
    """
    settings = {name: value for name, value in vars(config).items() if name not in ("max_step", "type")}

    def shift(positions, change, place=None, **kwargs):
        return positions + limited(change, config.max_step) if place is None else place

    # jax-md makes arrays of its settings: values even inside a trace, for rules of differentiation outlive the trace
    with jax.ensure_compile_time_eval():
        return jax_md().minimize.fire_descent(lambda positions, force, **kwargs: force, shift, **settings)[1]
