"""The loop of steps until no structure is active, and the backward pass through it (backpropagation through time).

Kept for the backward pass are the states between the steps. A state holds the evaluation that led to it, so that the
derivative of a step needs that of the evaluation, but not the evaluation again.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.relaxation.layouts import Evaluated
from lamjax.relaxation.steps import Progress, Steps, Weights
from lamjax.relaxation.surface import Surface, cached, instantiated, is_perturbed, values


class Memory(NamedTuple):
    """A buffer of `rows` states, one per `stride` steps; if full, every other one is dropped, the stride doubled."""

    rows: int
    stride: int = 1

    def longest(self, limit: int) -> int:
        """The largest stride that `limit` steps lead to."""
        return self.stride * 2 ** max(0, math.ceil(math.log2(limit / (self.stride * self.rows))))


class StepStart(NamedTuple):
    """The state and the neighbour lists from which steps begin."""

    state: Progress
    lists: Any  # of neighbours, with their skin


class ForwardRecord(NamedTuple):
    """The residuals of the forward pass that the backward pass needs."""

    wanted: dict[str, tuple]  # names of the weights that are differentiated; no array, so that it is known beforehand
    weights: Weights
    surface: Surface
    lists: Any  # those of the start
    stored: tuple[Any, jax.Array]  # rows of states, and the stride
    end: Progress
    n: jax.Array  # steps


def run_steps(
    steps: Steps, memory: Memory, limit: int, weights: Weights, surface: Surface, start: StepStart
) -> Progress:
    """The state after at most `limit` steps, differentiable with respect to `weights` and the state of the start."""

    @jax.custom_vjp
    def run(weights: Weights, state: Progress, surface: Surface, lists: Any) -> Progress:
        return advance(steps, limit, weights, surface, StepStart(state, lists)).state

    def forward(weights: Any, state: Any, surface: Any, lists: Any) -> tuple[Progress, ForwardRecord]:
        wanted = {name: () for name, part in weights._asdict().items() if is_perturbed(part)}
        weights, state, surface, lists = values((weights, state, surface, lists))
        (end, _), stored, n = _forward(steps, memory, limit, weights, surface, StepStart(state, lists))
        return end, ForwardRecord(wanted, weights, surface, lists, stored, end, n)

    def backward(record: ForwardRecord, cotangent: Any) -> tuple:
        on_weights, on_state = _backward(steps, memory.longest(limit), record, instantiated(cotangent))
        return on_weights, on_state, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(weights, start.state, surface, start.lists)


def advance(steps: Steps, limit: int, weights: Weights, surface: Surface, start: StepStart) -> StepStart:
    """The state and the lists after at most `limit` steps; cannot be differentiated."""
    return _forward(steps, None, limit, weights, surface, start)[0]


def _forward(
    steps: Steps, memory: Memory | None, limit: int, weights: Weights, surface: Surface, start: StepStart
) -> tuple:
    """The last state and lists, what was kept of the states before, and the number of steps."""

    def continues(carry: tuple) -> jax.Array:
        (state, _), _, n = carry
        return (n < limit) & jnp.any(steps.active(state))

    def step(carry: tuple) -> tuple:
        (state, lists), stored, n = carry
        stored = stored if memory is None else _keep(memory, stored, state, n)
        return StepStart(*steps.step(weights, surface, state, lists)), stored, n + 1

    stored = None if memory is None else (_rows(start.state, memory.rows), jnp.asarray(memory.stride, jnp.int32))
    return jax.lax.while_loop(continues, step, (start, stored, jnp.zeros((), jnp.int32)))


def _rows(state: Any, n: int) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), state)


def _put(rows: Any, k: Any, state: Any) -> Any:
    return jax.tree.map(lambda row, x: jax.lax.dynamic_update_index_in_dim(row, x, k, 0), rows, state)


def _get(rows: Any, k: Any) -> Any:
    return jax.tree.map(lambda row: jax.lax.dynamic_index_in_dim(row, k, 0, keepdims=False), rows)


def _keep(memory: Memory, stored: tuple, state: Progress, n: jax.Array) -> tuple:
    """The state before step n stored if its turn has come; row k holds the state before step k stride."""

    def thinned(stored: tuple) -> tuple:
        rows, stride = stored
        half = jnp.minimum(2 * jnp.arange(memory.rows), memory.rows - 1)
        return jax.tree.map(lambda row: row[half], rows), 2 * stride

    rows, stride = jax.lax.cond(n >= memory.rows * stored[1], thinned, lambda stored: stored, stored)
    turn = n % stride == 0
    k = n // stride
    return jax.tree.map(lambda row, x: row.at[jnp.where(turn, k, len(row))].set(x, mode="drop"), rows, state), stride


def _backward(steps: Steps, longest: int, record: ForwardRecord, cotangent: Progress) -> tuple[Weights, Progress]:
    """Cotangents of weights and of the first state."""
    (rows, stride), n = record.stored, record.n
    _, constant = _split(record.end)
    carry = jax.tree.map(jnp.zeros_like, record.weights), _split(cotangent)[0], record.lists

    def one(states: Any, k: Any, carry: tuple) -> tuple:
        """Back over the step that leads from states[k] to states[k + 1]."""
        on_weights, on_state, lists = carry
        more, on_state, lists = _step_back(steps, record, lists, (_get(states, k), _get(states, k + 1)), on_state)
        return jax.tree.map(jnp.add, on_weights, more), on_state, lists

    def segment(i: jax.Array, carry: tuple) -> tuple:
        """Back over the steps between row j and the next one (or the end), computed anew if more than one."""
        j = (n - 1) // stride - i
        first = j * stride
        length = jnp.minimum(stride, n - first)
        states = _put(_rows(record.end, longest + 1), 0, _get(rows, j))
        if longest == 1:
            following = jax.tree.map(lambda x, y: jnp.where(first + 1 < n, x, y), _get(rows, j + 1), record.end)
            return one(_put(states, 1, following), 0, carry)

        def again(k: jax.Array, carry: tuple) -> tuple:
            states, state, lists = carry
            state, lists = steps.step(record.weights, record.surface, state, lists)
            return _put(states, k + 1, state), state, lists

        states, _, lists = jax.lax.fori_loop(0, length, again, (states, _get(states, 0), carry[2]))
        return jax.lax.fori_loop(0, length, lambda k, c: one(states, length - 1 - k, c), (*carry[:2], lists))

    on_weights, on_state, _ = jax.lax.fori_loop(0, (n - 1) // stride + 1, segment, carry)
    return on_weights, _merge(on_state, _float0(constant))


def _step_back(
    steps: Steps, record: ForwardRecord, lists: Any, states: tuple[Progress, Progress], cotangent: Any
) -> tuple[Weights, Any, Any]:
    """Cotangents of weights and of the state before a step, from that of the state after it; and the lists there."""
    before, after = states
    weights, surface = record.weights, record.surface
    lists = steps.layout.refresh(surface, lists, after.z)
    neighbors = steps.layout.neighbors(surface, lists, after.z)
    moving, constant = _split(before)
    variables = {name: getattr(weights, name) for name in record.wanted}

    def step(variables, moving) -> tuple:
        state, at = _merge(moving, constant), weights._replace(**variables)
        active = steps.active(state)
        z = steps.propose(at, surface, state, active)
        evaluation = cached(after.evaluation, surface.with_cells(at.cells), at.params, z, neighbors)
        evaluated = Evaluated(evaluation, after.finite, after.overflow, after.truncated, after.largest_counts)
        return _split(steps.accept(at, surface, state, active, (z, evaluated)))[0]

    _, back = jax.vjp(step, variables, moving)
    on_variables, on_before = back(cotangent)
    on_weights = jax.tree.map(jnp.zeros_like, weights)._replace(**on_variables)
    return on_weights, on_before, lists


def _split(tree: Any) -> tuple[Any, Any]:
    """The floating leaves, and the others; None in the place of what is in the other one."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return (
        jax.tree.map(lambda x: x if is_float(x) else None, tree),
        jax.tree.map(lambda x: None if is_float(x) else x, tree),
    )


def _merge(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def _float0(tree: Any) -> Any:
    """Cotangents of what has none."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tree)
