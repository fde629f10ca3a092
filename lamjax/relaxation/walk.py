"""A loop that repeats a step until all structures stand still, and the way back through it.

The way back keeps the states between the steps only. The derivative of a step is that of the minimiser, which is
cheap, and that of the evaluation, which the landscape gives from its own inputs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Steps(NamedTuple):
    """The pieces of a step, as pure functions.

    `weights` are what is learned, a NamedTuple: everything that has a derivative and does not change from step to step.
    """

    propose: Callable  # (weights, constants, state) -> z
    look: Callable  # (constants, lists, z) -> lists, those of neighbours
    neighbors: Callable  # (constants, lists, z) -> who sees whom at z
    evaluate: Callable  # (weights, constants, z, lists) -> evaluation
    accept: Callable  # (weights, constants, state, evaluation) -> state; constants have no derivative
    recall: Callable  # (state, next state) -> the evaluation between them, as `accept` takes it
    pull: Callable  # (wanted, weights, constants, z, lists, cotangent of the evaluation) -> cotangents of weights and z
    goes: Callable  # (state) -> bool for each structure


class Memory(NamedTuple):
    """How many states are kept for the way back, and every which at first; if too many, half are dropped."""

    rows: int
    stride: int = 1

    def longest(self, limit: int) -> int:
        """The largest stride that `limit` steps lead to."""
        return self.stride * 2 ** max(0, math.ceil(math.log2(limit / (self.stride * self.rows))))


def walk(steps: Steps, memory: Memory, limit: int, weights, constants, lists, state):
    """The state after at most `limit` steps, differentiable with respect to `weights` and `state`."""

    @jax.custom_vjp
    def run(weights, state, constants, lists):
        return advance(steps, limit, weights, constants, lists, state)[0]

    def forward(weights, state, constants, lists):
        wanted = perturbed(weights)
        weights, state, constants, lists = values((weights, state, constants, lists))
        end, _, kept, n = _forward(steps, memory, limit, weights, constants, lists, state)
        return end, (wanted, weights, constants, lists, end, kept, n)

    def backward(residuals, cotangent):
        wanted, weights, constants, lists, end, (rows, stride), n = residuals
        cotangent = instantiated(cotangent)
        found = _backward(steps, memory, limit, wanted, weights, constants, lists, rows, stride, end, n, cotangent)
        return *found, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(weights, state, constants, lists)


def perturbed(weights):
    """What is differentiated, of the arguments that a custom_vjp with symbolic zeros gives its forward function.

    Of the type of the weights, with () or None for each part: no array, so that it is known when the program is made.
    """
    any_of = lambda part: any(leaf.perturbed for leaf in jax.tree.leaves(part, is_leaf=_is_primal))  # noqa: E731
    return type(weights)(*(() if any_of(part) else None for part in weights))


def values(tree):
    """Plain arrays of such arguments."""
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)


def instantiated(cotangent):
    """Zeros in the place of symbolic ones."""
    symbolic = lambda x: isinstance(x, jax.custom_derivatives.SymbolicZero)  # noqa: E731

    def zeros(x):
        if not symbolic(x):
            return x
        if x.dtype == jax.dtypes.float0:
            return np.zeros(x.shape, jax.dtypes.float0)
        return jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(zeros, cotangent, is_leaf=symbolic)


def _is_primal(x) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def advance(steps: Steps, limit: int, weights, constants, lists, state):
    """The state and the lists after at most `limit` steps, and the number of steps; cannot be differentiated."""
    state, lists, _, n = _forward(steps, None, limit, weights, constants, lists, state)
    return state, lists, n


def _forward(steps: Steps, memory: Memory | None, limit: int, weights, constants, lists, state):
    """The last state and lists, what was kept of the states before, and the number of steps."""

    def going(carry):
        state, _, _, n = carry
        return (n < limit) & jnp.any(steps.goes(state))

    def step(carry):
        state, lists, kept, n = carry
        kept = kept if memory is None else _keep(memory, kept, state, n)
        new, lists = _step(steps, weights, constants, state, lists)
        return new, lists, kept, n + 1

    kept = None if memory is None else (_rows(state, memory.rows), jnp.asarray(memory.stride, jnp.int32))
    return jax.lax.while_loop(going, step, (state, lists, kept, jnp.zeros((), jnp.int32)))


def _step(steps: Steps, weights, constants, state, lists):
    z = steps.propose(weights, constants, state)
    lists = steps.look(constants, lists, z)
    return steps.accept(weights, constants, state, steps.evaluate(weights, constants, z, lists)), lists


def _rows(state, n: int):
    return jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), state)


def _put(rows, k, state):
    return jax.tree.map(lambda row, x: jax.lax.dynamic_update_index_in_dim(row, x, k, 0), rows, state)


def _get(rows, k):
    return jax.tree.map(lambda row: jax.lax.dynamic_index_in_dim(row, k, 0, keepdims=False), rows)


def _keep(memory: Memory, kept, state, n):
    """The state before step n stored if its turn has come; row k holds the state before step k stride."""

    def thinned(kept):
        rows, stride = kept
        half = jnp.minimum(2 * jnp.arange(memory.rows), memory.rows - 1)
        return jax.tree.map(lambda row: row[half], rows), 2 * stride

    rows, stride = jax.lax.cond(n >= memory.rows * kept[1], thinned, lambda kept: kept, kept)
    turn = n % stride == 0
    k = n // stride
    return jax.tree.map(lambda row, x: row.at[jnp.where(turn, k, len(row))].set(x, mode="drop"), rows, state), stride


def _backward(
    steps: Steps, memory: Memory, limit: int, wanted, weights, constants, lists, rows, stride, end, n, cotangent
):
    """Cotangents of weights and of the first state."""
    longest = memory.longest(limit)
    _, fixed = _split(end)
    carry = _zeros(weights), _split(cotangent)[0], lists

    def one(states, k, carry):
        """Back over the step that leads from states[k] to states[k + 1]."""
        on_weights, on_state, lists = carry
        before, after = _get(states, k), _get(states, k + 1)
        more, on_state, lists = _step_back(steps, wanted, weights, constants, lists, before, after, on_state)
        return jax.tree.map(jnp.add, on_weights, more), on_state, lists

    def segment(i, carry):
        """Back over the steps between row j and the next one (or the end), computed anew if more than one."""
        j = (n - 1) // stride - i
        first = j * stride
        length = jnp.minimum(stride, n - first)
        states = _put(_rows(end, longest + 1), 0, _get(rows, j))
        if longest == 1:
            following = jax.tree.map(lambda x, y: jnp.where(first + 1 < n, x, y), _get(rows, j + 1), end)
            return one(_put(states, 1, following), 0, carry)

        def again(k, carry):
            states, state, lists = carry
            state, lists = _step(steps, weights, constants, state, lists)
            return _put(states, k + 1, state), state, lists

        states, _, lists = jax.lax.fori_loop(0, length, again, (states, _get(states, 0), carry[2]))
        return jax.lax.fori_loop(0, length, lambda k, c: one(states, length - 1 - k, c), (*carry[:2], lists))

    on_weights, on_state, _ = jax.lax.fori_loop(0, (n - 1) // stride + 1, segment, carry)
    return on_weights, _merge(on_state, _float0(fixed))


def _step_back(steps: Steps, wanted, weights, constants, lists, before, after, on_state):
    """Cotangents of weights and of the state before a step, from that of the state after it."""
    said, flags = _split(steps.recall(before, after))
    moving, fixed = _split(before)

    def minimiser(weights, moving, said):
        return _split(steps.accept(weights, constants, _merge(moving, fixed), _merge(said, flags)))[0]

    _, back = jax.vjp(minimiser, weights, moving, said)
    on_weights, on_before, on_said = back(on_state)
    z, back = jax.vjp(lambda weights, moving: steps.propose(weights, constants, _merge(moving, fixed)), weights, moving)
    lists = steps.look(constants, lists, z)
    through, on_z = steps.pull(wanted, weights, constants, z, lists, on_said)
    more_weights, more_before = back(on_z)
    total = jax.tree.map(lambda *parts: sum(parts), on_weights, more_weights, through)
    return total, jax.tree.map(jnp.add, on_before, more_before), lists


def _split(tree) -> tuple[Any, Any]:
    """The floating leaves, and the others; None in the place of what is in the other one."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return (
        jax.tree.map(lambda x: x if is_float(x) else None, tree),
        jax.tree.map(lambda x: None if is_float(x) else x, tree),
    )


def _merge(a, b):
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def _float0(tree):
    """Cotangents of what has none."""
    return jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tree)
