"""The state of a training run at a step: all that is needed to resume it exactly."""

import difflib
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from pydantic import Field

from lamjax import pytree
from lamjax.arguments import ArgumentError, describe, expect
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.potential import Params
from lamjax.training.schedules import Schedule


class TrainState(NamedTuple):
    """The step is the data cursor too: the order of batches is a function of seed and step (`data.batches(start=)`)."""

    step: Int[Array, ""]  # batches done
    params: Any
    opt_state: Any
    ema: Any  # running mean of the parameters, or None


@configuration
class OptimizerConfig:
    """An optimiser of optax or optax.contrib by name; `options` are its keyword arguments (b1, eps, weight_decay, ...).

    adam is what DeePMD-kit trains with. muon (arXiv 2502.16982; adam for what is no matrix) needs fewer steps, at a
    higher learning rate (5e-3): see experiments/optimizers.
    """

    name: str = "adam"
    max_norm: Annotated[float | None, Field(description="the gradient is scaled down to this global norm")] = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _factory(self)(learning_rate=1.0)
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {self.max_norm}; null leaves the gradient as it is.")


@factory
def optimizer(
    config: OptimizerConfig, learning_rate: Schedule | float, *, by_head: bool = False, accumulate: int = 1
) -> optax.GradientTransformation:
    """The optax optimiser of a config; ValueError for a name or an option that optax does not have.

    With `by_head`, for parameters of type Params, a head moves only in steps whose gradient reaches it (see
    `per_head`), while the learning rate follows the steps of the run. With `accumulate` k the mean gradient of k
    batches makes one update (optax.MultiSteps).
    """
    remedy = "For example OptimizerConfig('adam'); of optax's own optimisers fit takes any."
    expect(config, OptimizerConfig, "optimizer takes an OptimizerConfig first", remedy)
    update = _factory(config)(learning_rate=1.0 if by_head else learning_rate)
    if by_head:
        update = optax.chain(per_head(update), optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if config.max_norm is not None:
        update = optax.chain(optax.clip_by_global_norm(config.max_norm), update)
    return update if accumulate == 1 else optax.MultiSteps(update, accumulate).gradient_transformation()


def _factory(config: OptimizerConfig) -> Callable:
    """learning_rate -> optax optimiser; ValueError for what optax does not have."""
    factory = getattr(optax, config.name, None) or getattr(optax.contrib, config.name, None)
    if not callable(factory) or config.name.startswith("_"):
        known = [name for name in (*dir(optax), *dir(optax.contrib)) if name.islower()]
        close = difflib.get_close_matches(config.name.lower(), known, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"optax has no optimiser {config.name!r}. {hint}Examples: adam, adamw, muon, lion, sgd, adabelief."
        )

    def make(learning_rate: Any) -> object:
        try:
            return factory(learning_rate=learning_rate, **config.options)
        except TypeError as error:
            raise ValueError(f"optax.{config.name} does not take these options: {config.options} ({error}).") from error

    return make


def per_head(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for the descriptor and, with a state of its own, for every head that has a gradient; others stay as is.

    A step trains one task: the other heads must not move by momentum or weight decay, nor must their moments and their
    number of steps change, as if they had never been part of the step.
    """

    def start(params: Params) -> Params:
        return Params(inner.init(params.descriptor), {name: inner.init(head) for name, head in params.heads.items()})

    def update(gradient: Params, state: Params, params: Params) -> tuple[Params, Params]:
        descriptor, descriptor_state = inner.update(gradient.descriptor, state.descriptor, params.descriptor)
        heads, head_states = {}, {}
        for name, g in gradient.heads.items():
            used = jnp.any(jnp.array([jnp.any(x != 0) for x in jax.tree.leaves(g)]))
            heads[name], head_states[name] = jax.lax.cond(  # so that many heads cost no more than one
                used,
                inner.update,
                lambda g, s, p: (jax.tree.map(jnp.zeros_like, g), s),
                g,
                state.heads[name],
                params.heads[name],
            )
        return Params(descriptor, heads), Params(descriptor_state, head_states)

    return optax.GradientTransformation(cast(Any, start), cast(Any, update))


def per_member(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for each member of a committee (leading axis of the parameters), with a state of its own.

    Transformations of several numbers (clipping, muon) act within one member.
    """
    return optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(inner.update))


def init(params: Any, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    """The state before the first step. The parameters are copied, because a step reuses the memory of its state."""
    remedy = "Make one: training.optimizer(OptimizerConfig('adam'), 1e-3). The order is init(params, optimizer)."
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise ArgumentError(f"init takes an optimiser second, got {describe(optimizer)}. {remedy}")
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if whole := [pytree.path_name(path) for path, x in leaves if not jnp.issubdtype(jnp.result_type(x), jnp.inexact)]:
        raise ArgumentError(
            f"init: the parameters {', '.join(whole)} are whole numbers, of which there is no derivative. Make them "
            "floating-point numbers, or keep them in the potential instead of among its parameters."
        )

    def copy(params: Params) -> Any:
        return jax.tree.map(lambda x: jnp.array(x, copy=True), params)

    @jax.jit  # one program, instead of one for every shape
    def start(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), copy(params), optimizer.init(params), copy(params) if ema else None)

    return start(params)


def result(state: TrainState) -> Any:
    """The parameters to validate and to save: the running mean where there is one."""
    return state.params if state.ema is None else state.ema
