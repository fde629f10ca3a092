"""One relaxation at fixed cell: neighbours rebuilt at every step, FIRE, and the gradient that the config asks for."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax import neighbors as neighbor_lists
from lamjax import numerics, pytree
from lamjax.neighbors import Neighbors
from lamjax.relaxation.adjoints import Unrolled, UntilConverged, energy_and_forces, iterate, usable
from lamjax.relaxation.fire import FireConfig, fire
from lamjax.system import System


@dataclass(frozen=True)
class RelaxConfig:
    """When a relaxation ends, how it steps, and how it is differentiated."""

    fmax: float = 0.02  # eV/Å: converged when no atom feels a larger force
    max_steps: int = 500  # of UntilConverged; Unrolled has its own number
    fire: FireConfig = field(default_factory=FireConfig)
    adjoint: UntilConverged | Unrolled = field(default_factory=UntilConverged)
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.fmax < 0 or self.max_steps < 0:
            raise ValueError(f"fmax and max_steps must not be negative, got {self.fmax} eV/Å and {self.max_steps}.")


class Relaxation(NamedTuple):
    """Where a relaxation ended; with a leading axis for a batch."""

    system: System
    energy: Float[Array, "*batch"]  # eV
    forces: Float[Array, "*batch n_atoms 3"]  # eV/Å
    fmax: Float[Array, "*batch"]  # eV/Å, the largest force on an atom
    n_steps: Int[Array, "*batch"]  # steps taken until it converged, failed, or the steps ran out
    converged: Bool[Array, "*batch"]  # fmax <= config.fmax with a complete neighbour list
    finite: Bool[Array, "*batch"]  # False: energy or forces became infinite or NaN; this is the last state before
    overflow: Bool[Array, "*batch"]  # neighbours were missing on the way: grow the list and relax again
    truncated: Bool[Array, "*batch"]  # the model's own `sel` dropped neighbours on the way
    found: Int[Array, "*batch n_shells"]  # the most neighbours that an atom had on the way, within each shell


class _Progress(NamedTuple):
    """What one step hands to the next."""

    fire: Any
    energy: Float[Array, ""]
    fmax: Float[Array, ""]
    n_steps: Int[Array, ""]  # -1 before the start has been evaluated
    finite: Bool[Array, ""]
    overflow: Bool[Array, ""]
    truncated: Bool[Array, ""]
    found: Int[Array, " n_shells"]


def relax(potential, params, system: System, neighbors: Neighbors, config: RelaxConfig | None = None) -> Relaxation:
    """The structure moved downhill by FIRE at fixed cell until no force exceeds `config.fmax`. Pure: jit it outside.

    A batch (leading axis) is relaxed side by side, each structure with its own time step and stopping. `neighbors` is
    rebuilt at every step in its own shapes; `overflow` tells that they were too small (`relax_structures` then grows
    them). With `Unrolled` the result is differentiable with respect to params, positions and cell.
    """
    config = RelaxConfig() if config is None else config
    system, neighbors = jax.tree.map(jnp.asarray, (system, neighbors))
    if system.positions.ndim == 3:
        return jax.vmap(lambda s, n: _relax(potential, params, s, n, config))(system, neighbors)
    return _relax(potential, params, system, neighbors, config)


def _relax(potential, params, system, neighbors, config: RelaxConfig) -> Relaxation:
    minimiser = fire(config.fire)
    threshold = _threshold(config.fmax, system.positions.dtype)

    def active(state: _Progress):
        return state.finite & (state.fmax > threshold)

    def step(state: _Progress) -> _Progress:
        go, first = active(state), state.n_steps < 0
        # a structure that stands still takes a harmless step from a made-up state, which is then thrown away
        walks = go & ~first
        safe = pytree.where(walks, state.fire, _harmless(state.fire))
        positions = jnp.where(walks, minimiser.propose(safe), state.fire.position)
        moved = system._replace(positions=positions)
        there = neighbor_lists.update(neighbors, moved, potential.shells)
        energy, forces = energy_and_forces(potential, params, moved, there)
        good = usable(energy, forces)
        walked = minimiser.step(safe, jnp.where(walks & good, forces, 1))
        return _accept(state, pytree.where(first, minimiser.init(positions, forces), walked), energy, there, go, good)

    state = iterate(config.adjoint, step, _begin(minimiser, potential, system), active, config.max_steps)
    return Relaxation(
        system=system._replace(positions=state.fire.position),
        energy=state.energy,
        forces=state.fire.force,
        fmax=state.fmax,
        n_steps=jnp.maximum(state.n_steps, 0),
        converged=state.finite & (state.fmax <= threshold) & ~state.overflow,
        finite=state.finite,
        overflow=state.overflow,
        truncated=state.truncated,
        found=state.found,
    )


def _begin(minimiser, potential, system) -> _Progress:
    """At the start with nothing evaluated; the first round does that, so that the potential is compiled once."""
    return _Progress(
        fire=minimiser.init(system.positions, jnp.zeros_like(system.positions)),
        energy=jnp.zeros((), numerics.widest_float()),
        fmax=jnp.full((), jnp.inf, system.positions.dtype),
        n_steps=jnp.full((), -1, jnp.int32),
        finite=jnp.ones((), bool),
        overflow=jnp.zeros((), bool),
        truncated=jnp.zeros((), bool),
        found=jnp.zeros(len(potential.shells), jnp.int32),
    )


def _accept(state: _Progress, moved, energy, there: Neighbors, go, good) -> _Progress:
    """The new state where a step was wanted and its evaluation is usable, else the old one."""
    accepted = go & good
    new = state._replace(
        fire=moved,
        energy=energy.astype(state.energy.dtype),
        fmax=_largest(jnp.where(accepted, moved.force, 0)),
        n_steps=state.n_steps + 1,
    )
    return pytree.where(accepted, new, state)._replace(
        finite=state.finite & (good | ~go),
        overflow=state.overflow | (there.overflow & go),
        truncated=state.truncated | (there.truncated & go),
        found=jnp.maximum(state.found, jnp.where(go, there.found, 0)),
    )


def _harmless(state):
    """A state of the same shapes in which nothing is zero, so that every norm in a step has a derivative."""
    one = jnp.ones_like(state.force)
    return state.set(momentum=one, force=one)


def _largest(forces):
    """The largest force on an atom (eV/Å); no gradient, it only decides when to stop."""
    forces = jax.lax.stop_gradient(forces)
    return jnp.sqrt(jnp.max(jnp.sum(forces * forces, axis=-1), initial=0))


def _threshold(fmax: float, dtype) -> float:
    """`fmax`, but at least where the square of a force still is a number."""
    return max(fmax, 1e3 * float(jnp.finfo(dtype).tiny) ** 0.5)
