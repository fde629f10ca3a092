"""One update of the parameters, jitted: the gradient of the loss, and what the optimiser makes of it."""

import contextlib
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
from lamjax.numerics import compiler_options
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


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    lr_ratio: Callable | None = None,
    freeze: tuple[str, ...] = (),
    rates: Mapping[str, float] | None = None,
    ema_decay: float | None = None,
    accumulate: int = 1,
    share_layers: int = 0,
    matmul_precision: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> TrainStep:
    """The jitted function (state, batch) -> (state, metrics); the memory of the old state is reused.

    `lr_ratio(update)` = lr/lr_start is handed to the loss. Leaves whose path holds a name of `freeze` ("descriptor",
    "descriptor/repinit"), and always the statistics, are never changed; `rates` multiplies the learning rate of such
    parts. With `accumulate` k (and an optimiser made with the same) the mean gradient of k batches makes one update.
    `share_layers` first layers are one and the same in all heads (of parameters of type Params).
    `matmul_precision` as in `jax.default_matmul_precision`; `sharding` is where the new state lies.
    Metrics gain "loss", "grad_norm" and "finite"; where loss or gradient is not finite the state stays as it was.
    """
    scales = {**(rates or {}), **dict.fromkeys(freeze, 0.0)}
    placed = {} if sharding is None else {"out_shardings": (sharding, sharding)}
    jit = partial(jax.jit, compiler_options=compiler_options(), **placed)

    @jit
    def gradient(params: Params, n_steps: Any, batch: Any) -> tuple[dict, Any]:
        ratio = 1.0 if lr_ratio is None else lr_ratio(n_steps // accumulate)

        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            return loss(shared(only_trainable(params, freeze), share_layers), batch, ratio)

        precision = jax.default_matmul_precision(matmul_precision) if matmul_precision else contextlib.nullcontext()
        with precision:
            (value, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return {**metrics, "loss": value}, gradients

    @partial(jit, donate_argnums=0)
    def update(state: TrainState, gradient: PyTree, value: Any) -> tuple[TrainState, dict]:
        def updated(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            updates = _scaled(updates, scales)
            params = shared(optax.apply_updates(state.params, updates), share_layers)
            ema = state.ema
            if ema_decay is not None:
                whole = (state.step + 1) % accumulate == 0
                ema = optax.incremental_update(params, ema, jnp.where(whole, 1 - ema_decay, 0.0))
            return TrainState(state.step + 1, params, opt_state, ema)

        norm = pytree.global_norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)  # what is not finite anywhere makes the norm so
        return jax.lax.cond(finite, updated, lambda state: state, state), {"grad_norm": norm, "finite": finite}

    return TrainStep(gradient, update)


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
