"""One update of the parameters, jitted."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lamjax import pytree
from lamjax.losses import Loss
from lamjax.potential import Params
from lamjax.training.state import TrainState

STATISTICS = "statistics"  # leaves below this name are data of the model, not weights


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
) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """The jitted function (state, batch) -> (state, metrics); the memory of the old state is reused.

    `lr_ratio(update)` = lr/lr_start is handed to the loss. Leaves whose path holds a name of `freeze` ("descriptor",
    "descriptor/repinit"), and always the statistics, are never changed; `rates` multiplies the learning rate of such
    parts. With `accumulate` k (and an optimiser made with the same) the mean gradient of k batches makes one update.
    `share_layers` first layers are one and the same in all heads (of parameters of type Params).
    `matmul_precision` as in `jax.default_matmul_precision`; `sharding` is where the new state lies.
    Metrics gain "loss", "grad_norm" and "finite"; where loss or gradient is not finite the state stays as it was.
    """
    scales = {**(rates or {}), **dict.fromkeys(freeze, 0.0)}
    precision = jax.default_matmul_precision(matmul_precision) if matmul_precision else contextlib.nullcontext()

    @partial(jax.jit, donate_argnums=0, out_shardings=None if sharding is None else (sharding, sharding))
    def step(state: TrainState, batch) -> tuple[TrainState, dict]:
        ratio = 1.0 if lr_ratio is None else lr_ratio(state.step // accumulate)

        def objective(params):
            return loss(shared(only_trainable(params, freeze), share_layers), batch, ratio)

        with precision:
            (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = _scaled(updates, scales)
        params = shared(optax.apply_updates(state.params, updates), share_layers)
        ema = state.ema
        if ema_decay is not None:
            updated = (state.step + 1) % accumulate == 0
            ema = optax.incremental_update(params, ema, jnp.where(updated, 1 - ema_decay, 0.0))
        finite = jnp.isfinite(value) & pytree.all_finite(gradient)
        new = pytree.where(finite, TrainState(state.step + 1, params, opt_state, ema), state)
        norm = pytree.global_norm(gradient)
        return new, {**metrics, "loss": value, "grad_norm": norm, "finite": finite}

    return step


def shared(params, n_layers: int):
    """The parameters with the first `n_layers` layers of the first head in every head."""
    if n_layers == 0:
        return params
    first, *_ = params.heads.values()
    layers = first["layers"][:n_layers]
    return Params(
        params.descriptor,
        {name: {**head, "layers": [*layers, *head["layers"][n_layers:]]} for name, head in params.heads.items()},
    )


def only_trainable(params, freeze: tuple[str, ...] = ()):
    """The parameters with constants (no gradient) in place of the frozen ones."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, freeze) else x, params
    )


def is_frozen(path, freeze: tuple[str, ...] = ()) -> bool:
    """True for statistics and for leaves whose path holds one of the names."""
    return any(_holds(path, name) for name in (STATISTICS, *freeze))


def unknown_names(params, names: tuple[str, ...]) -> list[str]:
    """Names of parts that fit no leaf."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return [name for name in names if not any(_holds(path, name) for path in paths)]


def _holds(path, name: str) -> bool:
    return f"/{name.strip('/')}/" in f"/{pytree.path_name(path)}/"


def _scaled(updates, scales: Mapping[str, float]):
    """Updates times the scale of the longest name in their path; zero for statistics.

    Frozen leaves need this too: an optimiser may change them without a gradient (weight decay).
    """

    def scale(path, x):
        if is_frozen(path):
            return jnp.zeros_like(x)
        names = [name for name in scales if _holds(path, name)]
        return x * scales[max(names, key=len)] if names else x

    return jax.tree_util.tree_map_with_path(scale, updates)
