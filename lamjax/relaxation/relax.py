"""One relaxation, or a batch side by side, at fixed or variable cell, and the gradient of where it ends."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import ase
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics, pytree, summaries
from lamjax.neighbors import Neighbors, check_shells, verlet
from lamjax.neighbors.verlet import SKIN
from lamjax.relaxation import captured, coordinates, implicit, landscape
from lamjax.relaxation.adjoints import Adjoint, Hybrid, Implicit, Unrolled, UntilConverged
from lamjax.relaxation.coordinates import CellConfig
from lamjax.relaxation.landscape import Evaluation, Landscape
from lamjax.relaxation.minimisers import FireConfig, Minimiser, MinimiserConfig, minimiser
from lamjax.relaxation.walk import Memory, Steps, advance, walk
from lamjax.system import System, as_system, fixed_mask, kept_by_constraints


@dataclass(frozen=True)
class RelaxConfig:
    """When a relaxation ends, what moves and how, and how it is differentiated."""

    fmax: float = 0.02  # eV/Å: converged when no atom, nor the cell (-dE/dstrain per atom, as in ASE), feels more
    max_steps: int = 500  # of all adjoints but Unrolled, which has its own number
    cell: CellConfig | None = None  # None: the cell is fixed
    minimiser: MinimiserConfig = field(default_factory=FireConfig)
    adjoint: Adjoint = field(default_factory=UntilConverged)
    skin: float = SKIN  # Å; neighbours are searched anew when an atom (or the cell) has moved by half of it
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.fmax < 0 or self.max_steps < 0 or self.skin < 0:
            raise ValueError(
                f"fmax, max_steps and skin must not be negative, got {self.fmax} eV/Å, {self.max_steps}, {self.skin} Å."
            )


class Relaxation(NamedTuple):
    """Where a relaxation ended; with a leading axis for a batch."""

    system: System
    energy: Float[Array, "*batch"]  # eV, without PV
    forces: Float[Array, "*batch n_atoms 3"]  # eV/Å, 0 where an atom is fixed
    virial: Float[Array, "*batch 3 3"]  # eV, -dE/dstrain
    fmax: Float[Array, "*batch"]  # eV/Å, the largest force on an atom that moves, or on the cell
    n_steps: Int[Array, "*batch"]  # steps taken until it converged, failed, or the steps ran out
    converged: Bool[Array, "*batch"]  # fmax <= config.fmax with a complete neighbour list
    finite: Bool[Array, "*batch"]  # False: energy or forces became infinite or NaN; this is the last state before
    overflow: Bool[Array, "*batch"]  # neighbours were missing on the way: grow the list and relax again
    truncated: Bool[Array, "*batch"]  # the model's own `sel` dropped neighbours on the way
    found: Int[Array, "*batch n_shells"]  # the most neighbours that an atom had on the way, within each shell
    coordinates: Float[Array, "*batch rows 3"]  # Å, where it ended, as `relaxation.coordinates` counts
    window: System | None = None  # of the adjoint Hybrid: where its window ended

    def __repr__(self) -> str:
        return summaries.of_relaxation(self)


class Progress(NamedTuple):
    """What one step hands to the next, for a batch."""

    walker: Any  # the minimiser's state
    energy: Float[Array, " n_batch"]
    virial: Float[Array, "n_batch 3 3"]
    fmax: Float[Array, " n_batch"]
    n_steps: Int[Array, " n_batch"]  # -1 before the start has been evaluated
    finite: Bool[Array, " n_batch"]
    overflow: Bool[Array, " n_batch"]
    truncated: Bool[Array, " n_batch"]
    found: Int[Array, "n_batch n_shells"]


class Weights(NamedTuple):
    """Everything that a relaxation is differentiated by and that does not change on the way."""

    params: Any
    numbers: dict[str, Array]  # of the minimiser
    cells: Float[Array, "n_batch 3 3"]  # before the strain


class Said(NamedTuple):
    """An evaluation and what there is to know of it."""

    evaluation: Evaluation
    usable: Bool[Array, " n_batch"]
    overflow: Bool[Array, " n_batch"]
    truncated: Bool[Array, " n_batch"]
    found: Int[Array, "n_batch n_shells"]


def relax(
    potential,
    params,
    system: System | ase.Atoms,
    neighbors: Neighbors,
    config: RelaxConfig | None = None,
    *,
    fixed: Bool[Array, "*batch n_atoms 3"] | None = None,
    numbers: dict[str, Array] | None = None,
) -> Relaxation:
    """The structure moved downhill until no force exceeds `config.fmax`. Pure: jit it outside.

    A batch (leading axis) is relaxed side by side, each structure with its own time step and stopping. Neighbours are
    searched on the way as they are needed, in the shapes of `neighbors`; `overflow` tells that these were too small
    (`relax_structures` then grows them). Components that are True in `fixed` do not move (with a relaxing cell they
    keep their place in it); a flag an atom holds all three, and without `fixed` the constraints of an ase.Atoms count.
    `numbers` replaces numbers of the minimiser's config by traced ones (`minimiser.numbers`).

    How the result (system, energy, forces) is differentiated with respect to params, numbers, positions and cell is
    said by `config.adjoint`.
    """
    config = RelaxConfig() if config is None else config
    if fixed is None and isinstance(system, ase.Atoms):
        fixed = kept_by_constraints(system)
    system, neighbors = jax.tree.map(jnp.asarray, (as_system(system), neighbors))
    fixed = None if fixed is None else fixed_mask(fixed, system.numbers)
    if system.positions.ndim == 3:
        return _relax(potential, params, system, neighbors, config, fixed, numbers)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], (system, neighbors, fixed))
    return pytree.take(_relax(potential, params, *one[:2], config, one[2], numbers), 0)


def _relax(potential, params, system, neighbors, config: RelaxConfig, fixed, numbers) -> Relaxation:
    dtype = system.positions.dtype
    check_shells(neighbors, potential.shells, anew=True)
    method = minimiser(config.minimiser)
    numbers = method.numbers(dtype) | (numbers or {})
    weights = Weights(params, numbers, system.cell)
    there = jax.lax.stop_gradient(landscape.over(system, fixed, config.cell))
    lists = jax.vmap(lambda s, n: verlet.empty(s, n, potential.shells, config.skin))(system, neighbors)
    z = jax.vmap(coordinates.start)(system)
    potential, params = captured.explicit(potential, params, there, z, lists, neighbors.capacities)
    weights, steps = weights._replace(params=params), step_pieces(potential, method, config, neighbors.capacities)
    state = begin(method, numbers, z, len(potential.shells))
    window = None
    match config.adjoint:
        case Unrolled(n, segment):
            memory = Memory(n + 1) if segment is None else Memory(-(-(n + 1) // segment), segment)
            state = walk(steps, memory, n + 1, weights, there, lists, state)
        case UntilConverged(n, checkpoints):
            limit = (config.max_steps if n is None else n) + 1
            state = walk(steps, Memory(checkpoints or limit), limit, weights, there, lists, state)
        case Implicit() as rule:
            state = _minimum(potential, steps, config, rule, config.max_steps + 1, weights, there, lists, state)
        case Hybrid(n, rule):
            state = walk(steps, Memory(n + 1), n + 1, weights, there, lists, state)
            window = landscape.place(landscape.with_cells(there, weights.cells), state.walker.position)
            rest = max(0, config.max_steps - n)
            state = _minimum(potential, steps, config, rule, rest, weights, there, lists, state)
        case _:
            raise TypeError(f"Unknown adjoint {config.adjoint!r}; known: {Adjoint}.")
    return result(config, landscape.with_cells(there, weights.cells), state, window)


def step_pieces(potential, method: Minimiser, config: RelaxConfig, capacities: tuple[int, ...]) -> Steps:
    """A step of a batch, in the pieces that `walk` asks for."""
    shells, cell = potential.shells, config.cell

    def goes(state: Progress):
        return state.finite & (state.fmax > _threshold(config.fmax, state.fmax.dtype))

    def walks(state: Progress):
        return goes(state) & (state.n_steps >= 0)

    def safe(state: Progress):
        """A structure that stands still takes a harmless step from a made-up state, which is then thrown away."""
        return pytree.where(walks(state), state.walker, _harmless(state.walker))

    def propose(weights: Weights, there: Landscape, state: Progress):
        numbers = there.reference.numbers
        z = jax.vmap(method.propose, (None, 0, 0))(weights.numbers, safe(state), numbers)
        return jnp.where(walks(state)[:, None, None] & there.free, z, state.walker.position)

    def look(there: Landscape, lists, z):
        here = landscape.place(there, jax.lax.stop_gradient(z))
        return verlet.refresh(lists, here, shells, config.skin)

    def now(there: Landscape, lists, z):
        here = landscape.place(there, z)
        return jax.vmap(lambda v, s: verlet.narrow(v, s, shells, capacities))(lists, here)

    def evaluate(weights: Weights, there: Landscape, z, lists) -> Said:
        neighbors = now(there, lists, z)
        found = landscape.evaluate(potential, weights.params, there, z, neighbors, cell)
        flags = neighbors.overflow, neighbors.truncated, neighbors.found
        return Said(found, landscape.is_usable(found), *flags)

    def accept(weights: Weights, there: Landscape, state: Progress, said: Said) -> Progress:
        go, first, good = goes(state), state.n_steps < 0, said.usable
        z = propose(weights, there, state)
        force = jnp.where((go & good)[:, None, None], said.evaluation.force, 0)
        told = jnp.where(walks(state)[:, None, None], force, 1)
        walked = jax.vmap(method.step, (None, 0, 0, 0))(weights.numbers, safe(state), z, told)
        rested = jax.vmap(method.init, (None, 0, 0))(weights.numbers, z, force)
        new = state._replace(
            walker=pytree.where(first, rested, walked),
            energy=said.evaluation.energy.astype(state.energy.dtype),
            virial=said.evaluation.virial.astype(state.virial.dtype),
            fmax=landscape.largest(there, force),
            n_steps=state.n_steps + 1,
        )
        return pytree.where(go & good, new, state)._replace(
            finite=state.finite & (good | ~go),
            overflow=state.overflow | (said.overflow & go),
            truncated=state.truncated | (said.truncated & go),
            found=jnp.maximum(state.found, jnp.where(go[:, None], said.found, 0)),
        )

    def recall(before: Progress, after: Progress) -> Said:
        found = Evaluation(after.energy, after.walker.force, after.virial)
        return Said(found, after.finite, after.overflow, after.truncated, after.found)

    def pull(wanted: Weights, weights: Weights, there: Landscape, z, lists, cotangent: Said):
        here = landscape.with_cells(there, weights.cells)
        on = cotangent.evaluation
        usable = jnp.all(jnp.isfinite(on.force), axis=(1, 2)) & jnp.isfinite(on.energy)
        moved = jnp.any(on.force != 0, axis=(1, 2)) | (on.energy != 0)
        params, on_z, cells = landscape.pull(
            potential,
            weights.params,
            here,
            z,
            now(there, lists, z),
            cell,
            on.energy,
            on.force,
            usable & moved,
            by_params=wanted.params is not None,
            by_cells=wanted.cells is not None,
        )
        return Weights(params, jax.tree.map(jnp.zeros_like, weights.numbers), cells), on_z

    return Steps(propose, look, now, evaluate, accept, recall, pull, goes)


def begin(method: Minimiser, numbers, z, n_shells: int) -> Progress:
    """At the start with nothing evaluated; the first step does that, so that the potential is compiled once."""
    n = len(z)
    return Progress(
        walker=jax.vmap(method.init, (None, 0, 0))(numbers, z, jnp.zeros_like(z)),
        energy=jnp.zeros(n, numerics.widest_float()),
        virial=jnp.zeros((n, 3, 3), z.dtype),
        fmax=jnp.full(n, jnp.inf, z.dtype),
        n_steps=jnp.full(n, -1, jnp.int32),
        finite=jnp.ones(n, bool),
        overflow=jnp.zeros(n, bool),
        truncated=jnp.zeros(n, bool),
        found=jnp.zeros((n, n_shells), jnp.int32),
    )


def _harmless(walker):
    """A state of the same shapes in which nothing is zero, so that every norm in a step has a derivative."""
    return jax.tree.map(lambda x: jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, walker)


def _minimum(
    potential, steps: Steps, config: RelaxConfig, rule: Implicit, limit: int, weights, there, lists, state: Progress
):
    """The state at the minimum (after at most `limit` steps), polished, with the derivatives of a minimum."""
    still, state = jax.lax.stop_gradient((weights, state))
    state, lists, _ = advance(steps, limit, still, there, lists, state)
    lists = steps.look(there, lists, state.walker.position)  # made by no step, if there was none
    if rule.polish:
        state, lists = _polish(potential, steps, config, rule, still, there, lists, state)
    gate = _threshold(config.fmax, state.fmax.dtype) if rule.gate is None else rule.gate
    ok = state.finite & ~state.overflow & (state.fmax <= gate)
    neighbors = steps.neighbors(there, lists, state.walker.position)
    z, energy = implicit.at_minimum(
        potential, config.cell, rule, weights, there, state.walker.position, state.energy, neighbors, ok
    )
    return state._replace(walker=with_position(state.walker, z), energy=energy)


def _polish(potential, steps: Steps, config: RelaxConfig, rule: Implicit, weights, there, lists, state: Progress):
    """Newton steps z += H⁻¹ F of the converged structures, each taken only if it makes the largest force smaller."""

    def step(_, carry):
        state, lists = carry
        z, force = state.walker.position, state.walker.force
        near = state.finite & (state.fmax <= _threshold(config.fmax, state.fmax.dtype))
        neighbors = steps.neighbors(there, lists, z)
        force = jnp.where(near[:, None, None], force, 0)
        change, _ = implicit.solve(potential, weights.params, there, z, neighbors, config.cell, force, rule)
        lists = steps.look(there, lists, z + change)
        said = steps.evaluate(weights, there, z + change, lists)
        fmax = landscape.largest(there, said.evaluation.force)
        better = near & said.usable & (fmax < state.fmax)
        new = state._replace(
            walker=with_position(state.walker, z + change, said.evaluation.force),
            energy=said.evaluation.energy.astype(state.energy.dtype),
            virial=said.evaluation.virial.astype(state.virial.dtype),
            fmax=fmax,
        )
        new = pytree.where(better, new, state)._replace(overflow=state.overflow | (said.overflow & better))
        return new, steps.look(there, lists, new.walker.position)

    return jax.lax.fori_loop(0, rule.polish, step, (state, lists))


def with_position(walker, z, force=None):
    """A minimiser's state elsewhere."""
    changes = {"position": z} | ({} if force is None else {"force": force})
    return walker._replace(**changes) if hasattr(walker, "_replace") else walker.set(**changes)


def result(config: RelaxConfig, there: Landscape, state: Progress, window: System | None = None) -> Relaxation:
    """What a batch has come to."""
    return Relaxation(
        system=landscape.place(there, state.walker.position),
        energy=state.energy,
        forces=landscape.atomic_forces(there, state.walker.position, state.walker.force),
        virial=jax.lax.stop_gradient(state.virial),
        fmax=state.fmax,
        n_steps=jnp.maximum(state.n_steps, 0),
        converged=state.finite & (state.fmax <= _threshold(config.fmax, state.fmax.dtype)) & ~state.overflow,
        finite=state.finite,
        overflow=state.overflow,
        truncated=state.truncated,
        found=state.found,
        coordinates=state.walker.position,
        window=window,
    )


def _threshold(fmax: float, dtype) -> float:
    """`fmax`, but at least where the square of a force still is a number."""
    return max(fmax, 1e3 * float(jnp.finfo(dtype).tiny) ** 0.5)
