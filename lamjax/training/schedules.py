"""Learning rates as functions of the step, with DeePMD-kit's definitions; optax takes them as they are."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import Field

from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.factories import factory

Schedule: TypeAlias = Callable  # step -> learning rate; jittable


@configuration
class ScheduleConfig:
    """Learning rate from `start_lr` to `stop_lr` over the run, after a linear warmup.

    exp: start r^⌊t/decay_steps⌋ with r such that the end is stop_lr, or r = decay_rate with stop_lr as the floor.
    cosine: half a period. wsd: constant, then a decay over the last `decay_phase_ratio` of the run. constant: start_lr.
    """

    type: Literal["exp", "cosine", "wsd", "constant"] = "exp"
    start_lr: float = 1e-3
    stop_lr: float = 1e-6
    decay_steps: Annotated[int, Field(ge=1, description="exp")] = 5000
    decay_rate: Annotated[float | None, Field(description="exp")] = None
    smooth: Annotated[bool, Field(description="exp: no steps")] = False
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_start_factor: Annotated[float, Field(ge=0, description="of start_lr at step 0")] = 0.0
    decay_phase_ratio: Annotated[float, Field(description="wsd")] = 0.1
    decay_type: Annotated[Literal["inverse_linear", "cosine", "linear"], Field(description="wsd")] = "inverse_linear"

    def __post_init__(self) -> None:
        if not 0 < self.stop_lr <= self.start_lr:
            raise ValueError(f"Needs 0 < stop_lr <= start_lr, got stop_lr {self.stop_lr}, start_lr {self.start_lr}.")
        for name in ("decay_rate", "decay_phase_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}.")


@factory
def schedule(config: ScheduleConfig, n_steps: int) -> Schedule:
    """The learning rate as a function of the step, for a run of `n_steps`."""
    order = "The order is schedule(config, n_steps)."
    expect(config, ScheduleConfig, "schedule takes a ScheduleConfig first", order)
    expect(n_steps, (int, float, np.number), "schedule takes a number of steps second", order)
    length = n_steps - config.warmup_steps
    if length <= 0:
        raise ValueError(f"warmup_steps {config.warmup_steps} must be less than the {n_steps} steps of the run.")
    shape = {"exp": _exponential, "cosine": _cosine, "wsd": _wsd, "constant": _constant}[config.type]
    main = shape(config, length, n_steps)
    first = config.warmup_start_factor * config.start_lr

    def learning_rate(step: int | Array) -> Array:
        t = jnp.asarray(step, float)
        if config.warmup_steps == 0:
            return main(t)
        warm = first + (config.start_lr - first) * t / config.warmup_steps
        return jnp.where(t < config.warmup_steps, warm, main(jnp.maximum(t - config.warmup_steps, 0)))

    return learning_rate


def _exponential(config: ScheduleConfig, length: int, n_steps: int) -> Schedule:
    decay_steps, rate = config.decay_steps, config.decay_rate
    if rate is None:
        if decay_steps >= length:  # else the rate would never change
            decay_steps = 100 if length // 10 > 100 else length // 100 + 1
        rate = (config.stop_lr / config.start_lr) ** (decay_steps / length)

    def learning_rate(t: Array) -> Array:
        power = t / decay_steps if config.smooth else jnp.floor(t / decay_steps)
        return jnp.maximum(config.start_lr * rate**power, config.stop_lr)

    return learning_rate


def _cosine(config: ScheduleConfig, length: int, n_steps: int) -> Schedule:
    def learning_rate(t: Array) -> Array:
        return _cosine_fall(config, jnp.minimum(t / length, 1))

    return learning_rate


def _wsd(config: ScheduleConfig, length: int, n_steps: int) -> Schedule:
    fall = max(1, int(config.decay_phase_ratio * n_steps))
    if fall > length:
        raise ValueError(f"decay_phase_ratio {config.decay_phase_ratio} and warmup_steps together exceed the run.")
    start, stop = config.start_lr, config.stop_lr

    def learning_rate(t: Array) -> Array:
        tau = jnp.clip((t - (length - fall)) / fall, 0, 1)
        match config.decay_type:
            case "inverse_linear":
                return 1 / (tau / stop + (1 - tau) / start)
            case "cosine":
                return _cosine_fall(config, tau)
            case _:
                return start + (stop - start) * tau

    return learning_rate


def _constant(config: ScheduleConfig, length: int, n_steps: int) -> Schedule:
    return lambda t: jnp.full_like(t, config.start_lr)


def _cosine_fall(config: ScheduleConfig, tau: Array) -> Array:
    return config.stop_lr + (config.start_lr - config.stop_lr) * (1 + jnp.cos(jnp.pi * tau)) / 2
