"""Losses made of losses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from lamjax import pytree
from lamjax.arguments import ArgumentError, describe
from lamjax.factories import factory
from lamjax.losses.labels import LabelLossConfig, Loss, compare
from lamjax.losses.rows import predict_rows
from lamjax.potential import Params, Potential, select


class TaskBatches(NamedTuple):
    """The batch of one step: slots with the frames of one task each, all of one shape.

    Slots of different tasks may lie on different devices.
    """

    task: Int[Array, " slots"]  # number of the task of each slot
    batch: Any  # a batch with two leading axes, (slots, rows, ...)


@factory
def heads_loss(potential: Potential, heads: Sequence[str], configs: Sequence[LabelLossConfig]) -> Loss:
    """The label loss of several tasks in one program: (params, TaskBatches, lr_ratio) -> (scalar, metrics).

    Task t has the head `heads[t]` and the prefactors of `configs[t]`. The loss is the mean over the slots of the loss
    of each slot's task; the metrics are those of `label_loss` with a leading axis of slots, and "task". The head is
    looked up by number when the program runs, so that a further task costs no further compilation.
    Raises ValueError unless all heads are of one shape and all losses of one form (`same_form`).
    """
    if not heads or len(heads) != len(configs):
        raise ValueError(f"Each task needs a head and a config: got {len(heads)} heads and {len(configs)} configs.")
    if not all(same_form(potential, (head, c), (heads[0], configs[0])) for head, c in zip(heads, configs, strict=True)):
        raise ValueError("Tasks in one loss need heads of one shape, and losses that differ in prefactors only.")
    one = select(potential, heads[0])
    prefactors = np.array([config.prefactors for config in configs])

    def slot(
        params: Params, stacked: PyTree, task: Any, batch: Any, lr_ratio: float | Array
    ) -> tuple[Array, dict[str, Array]]:
        head = jax.tree.map(lambda leaf: leaf[task], stacked)
        own = Params(params.descriptor, {heads[0]: head})
        return compare(configs[0], predict_rows(one, own, batch), batch, lr_ratio, jnp.asarray(prefactors)[task])

    def loss(params: Params, slots: TaskBatches, lr_ratio: float | Array = 1.0) -> tuple[Array, dict[str, Array]]:
        stacked = pytree.stack([params.heads[head] for head in heads])
        if len(slots.task) == 1:  # the same without a further axis
            value, metrics = slot(params, stacked, slots.task[0], pytree.take(slots.batch, 0), lr_ratio)
            metrics = jax.tree.map(lambda x: x[None], metrics)
        else:
            values, metrics = jax.vmap(lambda task, batch: slot(params, stacked, task, batch, lr_ratio))(*slots)
            value = jnp.mean(values)
        return value, {**metrics, "task": slots.task}

    return loss


def same_form(potential: Potential, a: tuple[str, LabelLossConfig], b: tuple[str, LabelLossConfig]) -> bool:
    """True if two (head, loss) can share a program: equal head configs, losses equal but for the prefactors."""
    configs = dict(potential.config.heads)
    return configs[a[0]] == configs[b[0]] and _without_prefactors(a[1]) == _without_prefactors(b[1])


@factory
def multitask_loss(losses: Mapping[str, Loss]) -> Loss:
    """The loss of the one group that a batch {group: batch} belongs to, with that group's metrics.

    The name of the group is in the structure of the batch, so that jit compiles a program for each group and shape.
    """

    def loss(params: PyTree, batch: Any, lr_ratio: float | Array = 1.0) -> tuple[Array, dict[str, Array]]:
        _check_parts(batch, losses, one=True)
        ((group, part),) = batch.items()
        return losses[group](params, part, lr_ratio)

    return loss


@factory
def committee_loss(loss: Loss) -> Loss:
    """Σ over the members of a committee (leading axis of the parameters) of the loss of each, for one batch.

    A member's part of the gradient is the gradient of its own loss. Metrics are summed over the members.
    """

    def total(stacked: PyTree, batch: Any, lr_ratio: float | Array = 1.0) -> tuple[Array, Any]:
        values, metrics = jax.vmap(lambda params: loss(params, batch, lr_ratio))(stacked)
        return jnp.sum(values), jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    return total


@factory
def weighted_sum(losses: Mapping[str, tuple[float, Loss]]) -> Loss:
    """Σ_k w_k L_k(params, batch[k]) for a dict of weights and losses, and a batch that is a dict with the same keys.

    Metrics are named "k/metric". Raises ValueError for a batch without one of the keys.
    """
    for name, part in losses.items():
        if not isinstance(part, tuple) or len(part) != 2 or callable(part[0]):
            raise ArgumentError(f"weighted_sum takes {{name: (weight, loss)}}, got {describe(part)} for {name!r}.")

    def loss(params: PyTree, batch: Any, lr_ratio: float | Array = 1.0) -> tuple[float | Array, dict]:
        _check_parts(batch, losses, one=False)
        total, metrics = 0.0, {}
        for name, (weight, part) in losses.items():
            value, of_part = part(params, batch[name], lr_ratio)
            total = total + weight * value
            metrics |= {f"{name}/{key}": number for key, number in of_part.items()}
        return total, metrics

    return loss


def _check_parts(batch: Any, losses: Mapping[str, Any], one: bool) -> None:
    """ArgumentError unless the batch is a dict with a part for each of the losses, or for one of them."""
    named = batch.keys() if isinstance(batch, Mapping) else set()
    if len(named) == 1 and named <= losses.keys() if one else named and named >= losses.keys():
        return
    got = f"parts for {', '.join(map(str, named))}" if named else describe(batch)
    wanted = "one of the losses" if one else "each of the losses"
    raise ArgumentError(f"The batch is a dict with a part for {wanted} {', '.join(map(str, losses))}; got {got}.")


def _without_prefactors(config: LabelLossConfig) -> LabelLossConfig:
    return dataclasses.replace(config, **{f"{end}_pref_{x}": 0.0 for end in ("start", "limit") for x in "efv"})
