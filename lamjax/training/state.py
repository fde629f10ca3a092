"""What a training run is at a step: everything needed to go on as if it had never stopped."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lamjax.training.schedules import Schedule


class TrainState(NamedTuple):
    """The step is the data cursor too: the order of batches is a function of seed and step (`data.batches(start=)`)."""

    step: Int[Array, ""]  # updates done
    params: Any
    opt_state: Any
    ema: Any  # running mean of the parameters, or None


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser of optax by name; `options` are its keyword arguments (b1, b2, eps, weight_decay, ...)."""

    name: str = "adam"
    max_norm: float | None = None  # the gradient is scaled down to this global norm
    options: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def optimizer(config: OptimizerConfig, learning_rate: Schedule | float) -> optax.GradientTransformation:
    """The optax optimiser of a config; ValueError for a name or an option that optax does not have."""
    factory = getattr(optax, config.name, None)
    if not callable(factory) or config.name.startswith("_"):
        raise ValueError(f"optax has no optimiser {config.name!r}. Examples: adam, adamw, lion, sgd, adabelief.")
    try:
        update = factory(learning_rate=learning_rate, **config.options)
    except TypeError as error:
        raise ValueError(f"optax.{config.name} does not take these options: {config.options} ({error}).") from error
    if config.max_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(config.max_norm), update)


def init(params: Any, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    """The state before the first step. The parameters are copied, because a step reuses the memory of its state."""
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    mean = jax.tree.map(lambda x: jnp.array(x, copy=True), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), mean)
