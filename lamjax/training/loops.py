"""Loops over batches: the `for` loop belongs to the script, this is what it iterates."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from lamjax.arguments import ArgumentError, describe, expect
from lamjax.losses import Loss, errors
from lamjax.numerics import compiler_options
from lamjax.training.state import TrainState
from lamjax.training.step import TrainStep, make_step


class NonFiniteError(FloatingPointError):
    """Loss or gradient became NaN or infinite. The state that was yielded last is the last good one."""


def fit(
    loss: Loss,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    batches: Iterable,
    *,
    sources: Sequence[str] | Callable[[Any], list[str]] = (),
    **options: Any,
) -> Iterator[tuple[TrainState, dict[str, Any]]]:
    """Yields (state, metrics) after every batch; both stay on the device until they are looked at.

    Save or copy what is to be kept of a state before asking for the next one: its memory is reused.
    `sources[k]` names the frame k, or `sources(batch)` the frames of a batch; `options` are those of
    `StepSettings`. Raises NonFiniteError that names the frames of the batch.
    """
    remedy = "It is training.init(params, optimizer)."
    expect(state, TrainState, "fit takes the state of a training second", remedy)
    _check_batches(batches, "fit")
    yield from updates(make_step(loss, optimizer, **options), state, batches, sources)


def updates(
    step: TrainStep, state: TrainState, batches: Iterable, sources: Sequence[str] | Callable[[Any], list[str]] = ()
) -> Iterator[tuple[TrainState, dict[str, Any]]]:
    """As `fit` with a step made before, whose compiled programs are reused."""
    pending = None
    for batch in batches:  # the host prepares the next batch while the device works on the last
        _check(pending, sources)
        state, metrics = step(state, batch)
        pending = (batch, metrics["finite"], metrics["loss"])
        yield state, metrics
    _check(pending, sources)


def evaluate(loss: Loss, params: Any, batches: Iterable) -> dict[str, float]:
    """The metrics of a loss over all batches, of labels or of pairs: RMSE and MAE, or means (see `summary`)."""
    _check_batches(batches, "evaluate")
    run = _jitted(loss)
    metrics = [run(params, batch) for batch in batches]
    if not metrics:
        raise ValueError("There is no batch to evaluate.")
    return summary(metrics)


def summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of several batches as one, however they were cut.

    Sums over labels become RMSE and MAE (see `losses.errors`). Of other metrics it is the mean over the structures
    that counted (`n_structures`), over the batches where that is not known; numbers (`n_...`) are added up. Parts of a
    `losses.weighted_sum` ("part/metric") are each taken for themselves.
    """
    metrics = jax.device_get(list(metrics))
    parts = dict.fromkeys(key.rpartition("/")[0] for key in metrics[0])
    combined: dict[str, float] = {}
    for part in parts:
        own = [{k.rpartition("/")[2]: x for k, x in one.items() if k.rpartition("/")[0] == part} for one in metrics]
        combined |= {f"{part}/{key}" if part else key: x for key, x in _summary(own).items()}
    return combined


def _summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if "energy_n" in metrics[0]:
        return errors({key: np.sum(x) for key, x in add(metrics).items()})
    if len(metrics) == 1:
        return {key: float(np.mean(x)) for key, x in metrics[0].items()}
    weights = [float(one.get("n_structures", 1)) for one in metrics]
    weights = weights if sum(weights) else [1.0] * len(weights)
    return {
        key: float(np.sum([one[key] for one in metrics]))
        if key.startswith("n_")
        else float(np.average([np.mean(one[key]) for one in metrics], weights=weights))
        for key in metrics[0]
    }


def _check_batches(batches: Any, function: str) -> None:
    """ArgumentError for one batch, or packed frames, where several batches are meant."""
    if hasattr(batches, "_fields") or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"{function} takes several batches, got {describe(batches)}. Give data.batches(packed, epochs=1), or a "
            "list of batches."
        )


def add(sums: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Metrics of several batches added up, on the host."""
    return functools.reduce(
        lambda a, b: {key: a[key] + b[key] for key in a}, [jax.tree.map(np.asarray, s) for s in jax.device_get(sums)]
    )


@functools.lru_cache(maxsize=16)
def _jitted(loss: Loss) -> Callable:
    return jax.jit(lambda params, batch: loss(params, batch)[1], compiler_options=compiler_options())


def _check(pending: Any, sources: Any) -> None:
    if pending is None or bool(pending[1]):
        return
    batch, _, value = pending
    raise NonFiniteError(
        f"Loss {float(value)} or its gradient is not finite for the batch [{', '.join(names_of(batch, sources))}]. "
        "Remove or repair these frames, lower the learning rate, or set max_norm. The parameters before are kept."
    )


def names_of(batch: Any, sources: Sequence[str] | Callable[[Any], list[str]]) -> list[str]:
    """The names of the frames, or the pairs, of a batch."""
    if callable(sources):
        return sources(batch)
    numbers = getattr(batch, "number", None)  # of pairs, from 1
    frames = np.ravel(getattr(batch, "frame", ()) if numbers is None else np.asarray(numbers) - 1)
    frames = [int(k) for k in frames if k >= 0]
    return [sources[k] if k < len(sources) else f"frame {k}" for k in frames]
