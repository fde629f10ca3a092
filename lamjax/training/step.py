"""One update of the parameters, jitted: the gradient of the loss, and what the optimiser makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from lamjax import pytree
from lamjax.losses import Loss
from lamjax.numerics import compiler_options, matmul_precision
from lamjax.potential import Params
from lamjax.training.state import TrainState

STATISTICS = "statistics"  # leaves below this name are data of the model, not weights


@dataclass(frozen=True)
class TrainStep:
    """(state, batch) -> (state, metrics) in two programs; only the first is compiled anew for another shape."""

    gradient: Callable  # jitted (params, steps done, batch) -> (metrics, gradient)
    update: Callable  # jitted (state, gradient, loss) -> (state, more metrics); the memory of the state is reused

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict]:
        metrics, gradient = self.gradient(state.params, state.step, batch)
        state, more = self.update(state, gradient, metrics["loss"])
        return state, {**metrics, **more}


@dataclass(frozen=True)
class StepSettings:
    """Settings of a training step."""

    lr_ratio: Callable | None = None  # update -> lr/lr_start, handed to the loss
    freeze: tuple[str, ...] = ()  # leaves whose path holds one of these ("descriptor/repinit") never change
    rates: Mapping[str, float] | None = None  # factors of the learning rate of such parts
    ema_decay: float | None = None
    accumulate: int = 1  # batches whose mean gradient makes one update; the optimiser must be made with the same
    share_layers: int = 0  # first layers that are one and the same in all heads (of parameters of type Params)
    matmul_precision: str | None = None  # as in `jax.default_matmul_precision`
    sharding: jax.sharding.Sharding | None = None  # where the new state lies


def make_step(loss: Loss, optimizer: optax.GradientTransformation, **options: Any) -> TrainStep:
    """The jitted function (state, batch) -> (state, metrics); the memory of the old state is reused.

    `options` are the fields of `StepSettings`. Statistics are never changed. Metrics gain "loss", "grad_norm" and
    "finite"; where loss or gradient is not finite the state stays as it was.
    """
    chosen = StepSettings(**options)
    placed = {} if chosen.sharding is None else {"out_shardings": (chosen.sharding, chosen.sharding)}
    jit = partial(jax.jit, compiler_options=compiler_options(), **placed)
    return TrainStep(jit(_gradient(loss, chosen)), jit(_update(optimizer, chosen), donate_argnums=0))


def _gradient(loss: Loss, options: StepSettings) -> Callable:
    """(params, steps done, batch) -> (metrics, gradient)."""

    def gradient(params: Params, n_steps: Any, batch: Any) -> tuple[dict, Any]:
        ratio = 1.0 if options.lr_ratio is None else options.lr_ratio(n_steps // options.accumulate)

        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            return loss(shared(only_trainable(params, options.freeze), options.share_layers), batch, ratio)

        with matmul_precision(options.matmul_precision):
            (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return {**metrics, "loss": value}, gradients

    return gradient


def _update(optimizer: optax.GradientTransformation, options: StepSettings) -> Callable:
    """(state, gradient, loss) -> (state, more metrics)."""
    scales = {**(options.rates or {}), **dict.fromkeys(options.freeze, 0.0)}

    def update(state: TrainState, gradient: PyTree, value: Any) -> tuple[TrainState, dict]:
        def updated(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            updates = _scaled(updates, scales)
            params = shared(optax.apply_updates(state.params, updates), options.share_layers)
            ema = state.ema
            if options.ema_decay is not None:
                whole = (state.step + 1) % options.accumulate == 0
                ema = optax.incremental_update(params, ema, jnp.where(whole, 1 - options.ema_decay, 0.0))
            return TrainState(state.step + 1, params, opt_state, ema)

        norm = pytree.global_norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)  # one number that is not finite makes the norm so
        return jax.lax.cond(finite, updated, lambda state: state, state), {"grad_norm": norm, "finite": finite}

    return update


def shared(params: Params, n_layers: int) -> Params:
    """The parameters with the first `n_layers` layers of the first head in every head."""
    if n_layers == 0:
        return params
    first, *_ = params.heads.values()
    layers = first["layers"][:n_layers]
    return Params(
        params.descriptor,
        {name: {**head, "layers": [*layers, *head["layers"][n_layers:]]} for name, head in params.heads.items()},
    )


def only_trainable(params: Params, freeze: tuple[str, ...] = ()) -> Any:
    """The parameters with constants (no gradient) in place of the frozen ones."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, freeze) else x, params
    )


def is_frozen(path: Any, freeze: tuple[str, ...] = ()) -> bool:
    """True for statistics and for leaves whose path holds one of the names."""
    return any(_holds(path, name) for name in (STATISTICS, *freeze))


def unknown_names(params: Params, names: tuple[str, ...]) -> list[str]:
    """Names of parts that fit no leaf."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return [name for name in names if not any(_holds(path, name) for path in paths)]


def _holds(path: Any, name: str) -> bool:
    return f"/{name.strip('/')}/" in f"/{pytree.path_name(path)}/"


def _scaled(updates: PyTree, scales: Mapping[str, float]) -> Any:
    """Updates times the scale of the longest name in their path; zero for statistics.

    Frozen leaves need this too: an optimiser may change them without a gradient (weight decay).
    """

    def scale(path: Any, x: Array) -> Array:
        if is_frozen(path):
            return jnp.zeros_like(x)
        names = [name for name in scales if _holds(path, name)]
        return x * scales[max(names, key=len)] if names else x

    return jax.tree_util.tree_map_with_path(scale, updates)
