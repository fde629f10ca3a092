"""How gradients go back through a relaxation: the rule is an argument, the loop around the step is chosen by it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lamjax.system import real

FORCE_LIMIT = 1e12  # eV/Å; beyond it squares overflow in float32 and the evaluation counts as not finite
_SAVED = "relaxation forces"


@dataclass(frozen=True)
class UntilConverged:
    """Step until converged, `max_steps` at most. For evaluation: it cannot be differentiated in reverse."""

    type: Literal["until_converged"] = "until_converged"
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class Unrolled:
    """Always `steps` steps (converged structures stand still), differentiable by backpropagation through time.

    A step keeps what FIRE itself needs, about 15 numbers per atom, and everything inside the potential is computed
    anew on the way back. With `segment` set, only every `segment`-th step is kept, for one more evaluation per step.
    """

    steps: int = 50
    segment: int | None = None
    type: Literal["unrolled"] = "unrolled"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.steps < 1 or (self.segment is not None and not 1 <= self.segment <= self.steps):
            raise ValueError(f"Unrolled needs steps >= 1 and 1 <= segment <= steps, got {self}.")


Adjoint = UntilConverged | Unrolled


def iterate(adjoint: Adjoint, step: Callable, carry, active: Callable, max_steps: int):
    """`carry` after repeating `step` as the adjoint says; `active(carry)` is False where no step is wanted any more.

    The first round only evaluates the start: `carry.n_steps` goes from -1 to 0.
    """
    match adjoint:
        case UntilConverged():
            return jax.lax.while_loop(lambda c: active(c) & (c.n_steps < max_steps), step, carry)
        case Unrolled(steps, segment):
            return _unrolled(step, carry, steps + 1, segment)
    raise TypeError(f"Unknown adjoint {adjoint!r}; known: UntilConverged, Unrolled.")


def _unrolled(step, carry, steps: int, segment: int | None):
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED)
    kept = jax.checkpoint(step, prevent_cse=False, policy=policy)

    def run(carry, length: int):
        return jax.lax.scan(lambda c, _: (kept(c), None), carry, length=length)[0]

    if segment is None:
        return run(carry, steps)
    whole, rest = divmod(steps, segment)
    block = jax.checkpoint(lambda c, _: (run(c, segment), None), prevent_cse=False)
    carry = jax.lax.scan(block, carry, length=whole)[0]
    return run(carry, rest) if rest else carry


def energy_and_forces(potential, params, system, neighbors):
    """Energy (eV) and forces -dE/dx (eV/Å, 0 on padding), with a gradient made for backpropagation through time.

    The pullback of a force cotangent v is -∇(v·∇E), the reverse derivative of a forward one along v: exact, for the
    Hessian is symmetric. It keeps only its inputs and the forces, so no force is evaluated twice. An evaluation
    that is not finite has gradient zero; whoever calls must discard its value.
    """
    return _energy_and_forces(potential, params, system, neighbors)


def usable(energy, forces):
    """True if energy and forces are finite numbers that can be squared."""
    return jnp.isfinite(energy) & jnp.all(jnp.abs(forces) < FORCE_LIMIT)


def _evaluate(potential, params, system, neighbors):
    def energy(positions):
        return potential.energy(params, system._replace(positions=positions), neighbors)

    value, gradient = jax.value_and_grad(energy)(system.positions)
    return value, jnp.where(real(system)[:, None], -gradient, 0)


_energy_and_forces = jax.custom_vjp(_evaluate, nondiff_argnums=(0,))


def _forward(potential, params, system, neighbors):
    # named before `usable` reads them, so that nothing on the way back needs the evaluation again
    out = checkpoint_name(_evaluate(potential, params, system, neighbors), _SAVED)
    return out, (params, system, neighbors, usable(*out))


def _backward(potential, residuals, cotangents):
    params, system, neighbors, ok = residuals
    along_energy, along_forces = cotangents
    v = jnp.where(real(system)[:, None], -along_forces, 0)

    def functional(params, positions, cell):
        def energy(x):
            return potential.energy(params, system._replace(positions=x, cell=cell), neighbors)

        value, slope = jax.jvp(energy, (positions,), (v,))
        return along_energy * value + slope

    _, pullback = jax.vjp(functional, params, system.positions, system.cell)
    along_params, along_positions, along_cell = _zero_unless(ok, pullback(jnp.ones_like(along_energy)))
    zeros = jax.tree.map(lambda _: None, system)
    return along_params, zeros._replace(positions=along_positions, cell=along_cell), None


def _zero_unless(ok, gradients):
    floats = lambda x: x.dtype != jax.dtypes.float0  # noqa: E731
    return jax.tree.map(lambda x: jnp.where(ok, x, 0).astype(x.dtype) if floats(x) else x, gradients)


_energy_and_forces.defvjp(_forward, _backward)
