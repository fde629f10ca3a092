"""One update of the parameters, jitted."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lamjax import pytree
from lamjax.losses import Loss
from lamjax.training.state import TrainState

STATISTICS = "statistics"  # leaves below this name are data of the model, not weights


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    lr_ratio: Callable | None = None,
    freeze: tuple[str, ...] = (),
    ema_decay: float | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict]]:
    """The jitted function (state, batch) -> (state, metrics); the memory of the old state is reused.

    `lr_ratio(step)` = lr/lr_start is handed to the loss. Leaves whose path holds a name of `freeze` ("descriptor",
    "descriptor/repinit"), and always the statistics, are never changed. Metrics gain "loss", "grad_norm" and "finite";
    where loss or gradient is not finite the state stays as it was.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch) -> tuple[TrainState, dict]:
        ratio = 1.0 if lr_ratio is None else lr_ratio(state.step)

        def objective(params):
            return loss(only_trainable(params, freeze), batch, ratio)

        (value, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = _masked(updates, freeze)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        finite = jnp.isfinite(value) & pytree.all_finite(gradient)
        new = pytree.where(finite, TrainState(state.step + 1, params, opt_state, ema), state)
        norm = pytree.global_norm(gradient)
        return new, {**metrics, "loss": value, "grad_norm": norm, "finite": finite}

    return step


def only_trainable(params, freeze: tuple[str, ...] = ()):
    """The parameters with constants (no gradient) in place of the frozen ones."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, freeze) else x, params
    )


def is_frozen(path, freeze: tuple[str, ...] = ()) -> bool:
    """True for statistics and for leaves whose path holds one of the names."""
    name = f"/{pytree.path_name(path)}/"
    return any(f"/{pattern.strip('/')}/" in name for pattern in (STATISTICS, *freeze))


def unknown_names(params, freeze: tuple[str, ...]) -> list[str]:
    """Names to be frozen that fit no leaf."""
    names = [f"/{pytree.path_name(path)}/" for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return [pattern for pattern in freeze if not any(f"/{pattern.strip('/')}/" in name for name in names)]


def _masked(updates, freeze):
    """Zero updates for frozen leaves: an optimiser may change them without a gradient (weight decay)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if is_frozen(path, freeze) else x, updates
    )
