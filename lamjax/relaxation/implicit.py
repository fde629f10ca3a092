"""The implicit adjoint of a minimum: a linear solve with the Hessian, by conjugate residuals on Hessian products."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax.relaxation import landscape
from lamjax.relaxation.adjoints import Implicit
from lamjax.relaxation.coordinates import CellConfig
from lamjax.relaxation.landscape import Landscape
from lamjax.system import System, real


class Solve(NamedTuple):
    """How a linear solve went, one entry a structure."""

    iterations: Int[Array, " n_batch"]
    residual: Float[Array, " n_batch"]  # |H x - b| / |b|; 0 where b is 0
    negative: Bool[Array, " n_batch"]  # stopped at a direction of negative (or hardly any) curvature


def solve(
    potential,
    params,
    there: Landscape,
    z,
    neighbors,
    cell: CellConfig | None,
    rhs,
    rule: Implicit,
    damping=None,
    saddle: bool = False,
) -> tuple[Float[Array, "n_batch rows 3"], Solve]:
    """x of (H + damping) x = b, b = `rhs` without what cannot change: rigid motions and what is not free.

    Conjugate residuals of all structures side by side. Where rᵀHr <= 0 or |Hr| <= curvature |r| for the residual r
    the solution so far is kept.
    `damping` (n_batch, eV/Å²) replaces that of the rule. At a `saddle` negative curvature is in order: minimal
    residuals then.
    """
    damping = jnp.full(len(z), rule.damping, z.dtype) if damping is None else damping
    rigid = rigid_motions(there, z)
    product = landscape.hessian_product(potential, params, there, z, neighbors, cell)

    def within(v):
        return rigid(landscape.project(there, v, cell))

    def apply(v):
        return within(product(v)) + _times(damping, v)

    return (minimal_residuals if saddle else conjugate_residuals)(apply, within(rhs), rule)


def enough_damping(
    potential, params, there: Landscape, z, neighbors, cell: CellConfig | None, rhs, rule: Implicit, tries: int = 4
) -> tuple[Float[Array, "n_batch rows 3"], Solve, Float[Array, " n_batch"]]:
    """As `solve`, with ten times the damping wherever the curvature was not positive, and again; and the damping."""

    def attempt(damping):
        return solve(potential, params, there, z, neighbors, cell, rhs, rule, damping)

    def going(carry):
        _, report, _, k = carry
        return jnp.any(report.negative) & (k <= tries)

    def again(carry):
        _, report, damping, k = carry
        damping = jnp.where(report.negative & (k > 0), 10 * jnp.maximum(damping, 0.1), damping)
        return *attempt(damping), damping, k + 1

    nothing = Solve(*(jnp.ones(len(z), t) for t in (jnp.int32, z.dtype, bool)))  # so that the first attempt is made
    start = jnp.zeros_like(z), nothing, jnp.full(len(z), rule.damping, z.dtype), jnp.zeros((), jnp.int32)
    x, report, damping, _ = jax.lax.while_loop(going, again, start)
    return x, report, damping


def conjugate_residuals(apply: Callable, b, rule: Implicit) -> tuple[Float[Array, "n_batch rows 3"], Solve]:
    """x of least |apply(x) - b| for each row, to |residual| <= tol |b|; stops where the curvature is not positive.

    What of b no x can answer (a push on a fragment that nothing holds) stays in the residual r and is taken out of x;
    the rest is solved for. Conjugate gradients would mix the two. Where rᵀHr <= 0 there is a negative curvature.
    Stiefel, Comment. Math. Helv. 29, 157 (1955); Liu, Roosta, SIAM J. Optim. 32, 2636 (2022).
    """
    target = rule.tol**2 * _dot(b, b)

    def going(carry):
        *_, alive, _, k = carry
        return jnp.any(alive) & (jnp.max(k) < rule.max_iterations)

    def step(carry):
        x, r, p, product, along, square, alive, negative, k = carry
        change = apply(r)
        new, bend = _dot(r, change), _dot(change, change)
        valley = alive & (bend <= rule.curvature**2 * square)
        flat = alive & (valley | (new <= 0))
        go = alive & ~flat
        x = x - _times(jnp.where(valley, _dot(r, x) / square, 0), r)
        turn = jnp.where(go, new / along, 0)
        p, product = r + _times(turn, p), change + _times(turn, product)
        length = jnp.where(go, new / jnp.where(go, _dot(product, product), 1), 0)
        x, r = x + _times(length, p), r - _times(length, product)
        along, square = jnp.where(go, new, along), jnp.where(go, _dot(r, r), square)
        return x, r, p, product, along, square, go & (square > target), negative | flat, k + alive

    n = len(b)
    square, nothing = _dot(b, b), jnp.zeros_like(b)
    start = nothing, b, nothing, nothing, jnp.ones_like(square), square, square > 0
    start = *start, jnp.zeros(n, bool), jnp.zeros(n, jnp.int32)
    x, *_, square, _, negative, k = jax.lax.while_loop(going, step, start)
    residual = jnp.sqrt(square / jnp.where(target > 0, _dot(b, b), 1))
    return x, Solve(k, residual, negative)


def minimal_residuals(apply: Callable, b, rule: Implicit) -> tuple[Float[Array, "n_batch rows 3"], Solve]:
    """x of least |apply(x) - b| for each row, apply symmetric, of either sign: to |residual| <= tol |b|.

    Directions p whose images s = apply(p) are orthonormal, from s by the three-term recurrence of MINRES (Paige,
    Saunders, SIAM J. Numer. Anal. 12, 617 (1975)). `negative` tells of a row that did not come to the tolerance.
    """
    target = rule.tol**2 * _dot(b, b)

    def scaled(p, s):
        size = jnp.sqrt(_dot(s, s))
        flat = size <= rule.curvature * jnp.sqrt(_dot(p, p))
        factor = jnp.where(flat, 0, 1 / jnp.where(flat, 1, size))
        return _times(factor, p), _times(factor, s), flat

    def going(carry):
        *_, alive, k = carry
        return jnp.any(alive) & (jnp.max(k) < rule.max_iterations)

    def step(carry):
        x, r, p1, s1, p2, s2, alive, k = carry
        length = jnp.where(alive, _dot(r, s1), 0)
        x, r = x + _times(length, p1), r - _times(length, s1)
        p0, s0 = s1, apply(s1)
        for p, s in ((p1, s1), (p2, s2)):
            share = _dot(s0, s)
            p0, s0 = p0 - _times(share, p), s0 - _times(share, s)
        p0, s0, flat = scaled(p0, s0)
        return x, r, p0, s0, p1, s1, alive & ~flat & (_dot(r, r) > target), k + alive

    zero = jnp.zeros_like(b)
    p, s, flat = scaled(b, apply(b))
    start = zero, b, p, s, zero, zero, ~flat & (target > 0), jnp.zeros(len(b), jnp.int32)
    x, r, *_, k = jax.lax.while_loop(going, step, start)
    square = _dot(r, r)
    return x, Solve(k, jnp.sqrt(square / jnp.where(target > 0, _dot(b, b), 1)), square > target)


def rigid_motions(there: Landscape, z) -> Callable:
    """v -> v without the motions of a whole structure: translations, and rotations where the cell does not forbid them.

    A fixed atom pins its structure: nothing is taken away.
    """
    modes = jax.lax.stop_gradient(jax.vmap(_modes)(landscape.place(there, z), there.free))  # (n_batch, 6, n_atoms, 3)
    overlap = jnp.einsum("bmax,bnax->bmn", modes, modes)
    inverse = jnp.linalg.pinv(overlap, rtol=1e-6, hermitian=True)

    def without(v):
        weights = jnp.einsum("bmn,bnax,bax->bm", inverse, modes, v[:, :-3])
        return v.at[:, :-3].add(-jnp.einsum("bm,bmax->bax", weights, modes))

    return without


def _modes(system: System, free) -> Float[Array, "6 n_atoms 3"]:
    """Three translations and three rotations about the centre, with zeros for those that change the energy."""
    is_real = real(system)[:, None]
    pinned = jnp.any(is_real & ~free[:-3])
    center = jnp.sum(jnp.where(is_real, system.positions, 0), axis=0) / jnp.maximum(jnp.sum(is_real), 1)
    arm = jnp.where(is_real, system.positions - center, 0)
    n_periodic = jnp.sum(system.pbc)
    axis = jnp.sum(jnp.where(system.pbc[:, None], system.cell, 0), axis=0)  # the periodic one, where it is only one
    only = jnp.zeros((3, 3), arm.dtype).at[0].set(axis)
    axes = jnp.where(n_periodic == 0, jnp.eye(3, dtype=arm.dtype), jnp.where(n_periodic == 1, only, 0))
    rotations = jnp.cross(axes[:, None, :], arm[None])
    translations = jnp.where(is_real[None], jnp.eye(3, dtype=arm.dtype)[:, None, :], 0)
    return jnp.where(pinned, 0, jnp.concatenate([translations, rotations]))


@jax.custom_jvp
def undifferentiated(tree):
    """The tree as it is; TypeError where a derivative of it is asked for."""
    return tree


@undifferentiated.defjvp
def _refused(primals, tangents):
    raise TypeError(
        "The implicit adjoint gives first derivatives of a minimum alone: a second one would need those of its linear "
        "solve. Differentiate an Unrolled relaxation twice, by jax.jacfwd over jax.grad, or take finite differences of "
        "the gradient at a small fmax and tol."
    )


def at_minimum(
    potential,
    cell: CellConfig | None,
    rule: Implicit,
    weights,
    there: Landscape,
    z,
    energy,
    neighbors,
    ok,
    saddle: bool = False,
):
    """z and energy as they are, with the derivatives of a minimum (or `saddle`); none for those that are not `ok`."""

    @jax.custom_vjp
    def identity(weights, there, z, energy, neighbors, ok):
        return z, energy

    def forward(weights, there, z, energy, neighbors, ok):
        return (z, energy), (weights, there, z, neighbors, ok)

    def backward(residuals, cotangents):
        weights, there, z, neighbors, ok = residuals
        weights = undifferentiated(weights)
        on_z, on_energy = cotangents
        on_z = on_z + _times(on_energy.astype(z.dtype), landscape.energy_slope(there, z, cell))
        on_z = jnp.where(ok[:, None, None], on_z, 0)
        solution, _ = solve(potential, weights.params, there, z, neighbors, cell, on_z, rule, None, saddle)
        usable = jnp.any(solution != 0, axis=(1, 2)) | (on_energy != 0)

        def pull(_):
            found = landscape.pull(potential, weights.params, there, z, neighbors, cell, on_energy, solution, usable)
            return zeros._replace(params=found[0], cells=found[2])

        zeros = jax.tree.map(jnp.zeros_like, weights)
        # a branch, so that the compiler does not keep what the solve has computed for use in here: half the memory
        on_weights = jax.lax.cond(jnp.any(usable), pull, lambda _: zeros, None)
        return on_weights, None, None, None, None, None

    identity.defvjp(forward, backward)
    return identity(weights, there, z, energy, neighbors, ok)


def tie(
    potential, params, there: Landscape, z, neighbors, cell, rule: Implicit, on_z
) -> tuple[Float[Array, ""], Solve]:
    """A number that is 0, with the derivative -Σ λᵀ ∂g/∂θ, H λ = `on_z`: what a loss adds to be one of the minimum.

    The same gradient as that of `relax` with the adjoint Implicit; here the solve is part of the loss, so that the
    loss can report how it went.
    """
    still = jax.lax.stop_gradient
    solution, report = still(solve(potential, still(params), there, still(z), neighbors, cell, still(on_z), rule))

    def slope(at, constants):
        (params, there), (z, neighbors, solution) = at, constants

        def of(params):
            return -jnp.sum(landscape.slope(potential, params, there, z, neighbors, cell, solution)).astype(z.dtype)

        # a branch, so that the compiler does not keep what the solve has computed for use in here: half the memory
        return jax.lax.cond(jnp.any(solution != 0), of, lambda params: jnp.zeros((), z.dtype), params)

    return derivative_alone(slope, (params, there), (still(z), neighbors, solution)), report


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def derivative_alone(function: Callable, at, constants) -> Float[Array, ""]:
    """0, with the first derivative of function(at, constants) by `at`; a second one is a TypeError.

    `constants` solve equations in which `at` stands, which the second derivative would have to know. The function
    closes over nothing that is traced, and gives a number in the precision of the first of `constants`.
    """
    return jnp.zeros((), constants[0].dtype)


@derivative_alone.defjvp
def _first_derivative(function, primals, tangents):
    at, constants = primals
    at = undifferentiated(at)
    change = jax.jvp(lambda at: function(at, constants), (at,), (tangents[0],))[1]
    return jnp.zeros((), constants[0].dtype), change


def _dot(a, b) -> Float[Array, " n_batch"]:
    return jnp.sum(a * b, axis=(1, 2))


def _times(s, v):
    return s[:, None, None] * v
