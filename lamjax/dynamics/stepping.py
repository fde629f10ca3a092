"""The compiled programs of a simulation: its steps, with their neighbour lists, in chunks with records."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics, pytree, units
from lamjax.domains.moving import AnyShapes
from lamjax.dynamics import ensembles
from lamjax.dynamics.ensembles import Ensemble, Surroundings, integrator
from lamjax.dynamics.records import Record
from lamjax.system import System, volume

FARTHEST = 1.0  # Å in one step; a larger one is an explosion
CHUNK = 50  # records that one call of the device makes, at most


class MDPrograms(NamedTuple):
    """The compiled programs for an ensemble and shapes of arrays."""

    start: Callable  # (surroundings, momenta, key) -> state, lists, StepDiagnostics
    chunk: Callable  # (state, surroundings, Span) -> state, lists, step, ok, number of records, records
    look: Callable  # (state, surroundings) -> StepDiagnostics of the step that is to come


class Stepper(NamedTuple):
    """A step with its neighbour lists."""

    moves: ensembles.Integrator
    search: Callable  # (lists, system) -> lists, the fullest bin (and domain)
    step: Callable  # (state, surroundings) -> state, lists, whether it can be trusted
    moved: Callable  # (state, state after it, system) -> Å of every atom


class Span(NamedTuple):
    """Steps to make, and how many lie between records."""

    first: Any
    last: Any
    every: Any
    n_records: Any


class StepDiagnostics(NamedTuple):
    """Diagnostics of a step: array sizes that it needs, and whether it is sound."""

    system: System  # after it
    neighbors: Int[Array, " n_shells"]
    fullest: Int[Array, " n_kinds"]  # bin, and domain where there are several
    radius: Float[Array, ""]  # Å that the bins let an atom see
    moved: Float[Array, " n_atoms"]  # Å in the step
    ok: Bool[Array, ""]


def programs(ensemble: Ensemble, shapes: AnyShapes, skin: float) -> MDPrograms:
    """The programs of an ensemble; those of other temperatures and pressures are the same."""
    return _compiled(ensembles.in_any_bath(ensemble), shapes, skin)


@functools.lru_cache(maxsize=32)
def _compiled(ensemble: Ensemble, shapes: AnyShapes, skin: float) -> MDPrograms:
    stepper = _stepper(ensemble, shapes, skin)
    moves, search = stepper.moves, stepper.search

    def start(around: Surroundings, momenta: Array, key: Array) -> tuple[Any, Any, StepDiagnostics]:
        system = around.system
        lists, fullest = search(around.lists, system)
        state = moves.start(key, around._replace(lists=lists), momenta)
        finite = jnp.all(jnp.isfinite(state.force))
        still = jnp.zeros(system.n_atoms)
        return state, lists, StepDiagnostics(system, lists.largest_counts, fullest, lists.radius, still, finite)

    def look(state: Any, around: Surroundings) -> StepDiagnostics:
        after, lists, ok = stepper.step(state, around)
        current = moves.place(after, around.system)
        lists, fullest = search(lists, current)
        moved = stepper.moved(state, after, around.system)
        return StepDiagnostics(current, lists.largest_counts, fullest, lists.radius, moved, ok)

    chunk = _chunk(stepper, _observer(ensemble, shapes, moves))
    options = numerics.compiler_options()
    return MDPrograms(*(jax.jit(program, compiler_options=options) for program in (start, chunk, look)))


def _stepper(ensemble: Ensemble, shapes: AnyShapes, skin: float) -> Stepper:
    """Steps that renew the neighbour list where it is stale."""
    evaluate, moves = ensemble.evaluator, integrator(ensemble, shapes)

    def search(lists: Any, current: System) -> tuple[Any, Array]:
        return evaluate.search(lists, current, skin, shapes)

    def step(state: Any, around: Surroundings) -> tuple[Any, Any, Array]:
        """A step and its lists; whether it can be trusted."""
        after = moves.step(state, around)
        current = moves.place(after, around.system)

        def again(_: Any) -> tuple[Any, Any]:
            # where atoms are does not depend on the forces there, which are all that the old list got wrong
            new = search(around.lists, current)[0]
            return moves.step(state, around._replace(lists=new)), new

        stale = evaluate.is_stale(around.lists, current)
        after, lists = jax.lax.cond(stale, again, lambda _: (after, around.lists), None)
        displacement = moved(state, after, around.system)
        # forces are NaN where a list overflows
        ok = (
            jnp.all(jnp.isfinite(after.force))
            & jnp.all(jnp.isfinite(after.momentum))
            & jnp.all(displacement < FARTHEST)
        )
        return after, lists, ok

    def moved(state: Any, after: Any, system: System) -> Array:
        """Å of every atom, without what a cell does that becomes larger or smaller as a whole."""
        before, current = moves.place(state, system), moves.place(after, system)
        scale = (volume(current) / jnp.where(volume(before) > 0, volume(before), 1)) ** (1 / 3)
        scale = jnp.where(jnp.all(system.pbc), scale, 1)
        return jnp.linalg.norm(current.positions - scale * before.positions, axis=-1)

    return Stepper(moves, search, step, moved)


def _chunk(stepper: Stepper, observe: Callable) -> Callable:
    """The program of many steps, with a record of every few."""

    def chunk(state: Any, around: Surroundings, span: Span) -> tuple:
        """Steps from `first` to at most `last`, and a record after every `every`-th, `n_records` of them.

        With `last` equal to `first`, the record there. None of the four is a part of the program.
        """
        blank = jax.eval_shape(observe, state, around, span.first)
        blank = jax.tree.map(lambda x: jnp.zeros((CHUNK, *x.shape), x.dtype), blank)

        def step(carry: tuple) -> tuple:
            state, lists, k, _, end = carry
            after, newer, ok = stepper.step(state, around._replace(lists=lists))
            state, lists = pytree.where(ok, (after, newer), (state, lists))
            return state, lists, k + ok, ok, end

        def record(carry: tuple) -> tuple:
            state, lists, now, ok, n, records = carry
            end = jnp.minimum(span.last, (now // span.every + 1) * span.every)
            state, lists, now, ok, _ = jax.lax.while_loop(
                lambda c: c[3] & (c[2] < c[4]), step, (state, lists, now, ok, end)
            )
            observed = observe(state, around._replace(lists=lists), now)
            records = jax.tree.map(lambda all_, x: all_.at[n].set(x), records, observed)
            return state, lists, now, ok, n + (now == end), records

        start = state, around.lists, span.first, jnp.ones((), bool), jnp.zeros((), jnp.int32), blank
        return jax.lax.while_loop(lambda c: c[3] & (c[4] < span.n_records), record, start)

    return chunk


def _observer(ensemble: Ensemble, shapes: AnyShapes, moves: ensembles.Integrator) -> Callable:
    """The function (state, surroundings, step) -> Record of one step."""
    evaluate = ensemble.evaluator

    def observe(state: Any, around: Surroundings, step: Any) -> Record:
        current = moves.place(state, around.system)
        predicted, neighbors = evaluate.predict(around.params, current, around.lists, shapes)
        space: Any = volume(current)
        velocity = state.momentum / state.mass
        virial = predicted.virial + velocity.T @ state.momentum  # of the potential and of the motion
        stress: Any = jnp.where(jnp.all(current.pbc), units.to_voigt(units.virial_to_stress(virial, space)), jnp.nan)
        kinetic = ensembles.kinetic_energy(state)
        n_fixed = jnp.sum(around.fixed, axis=0)
        freedom = ensembles.degrees_of_freedom(ensemble.config, around.system.n_atoms, n_fixed)
        of_cell: Any = jnp.where(jnp.all(current.pbc), space, jnp.nan)
        return Record(
            step=step,
            potential_energy=predicted.energy,
            kinetic_energy=kinetic,
            temperature=2 * kinetic / (jnp.maximum(1, freedom) * units.KB),
            stress=stress,
            volume=of_cell,
            conserved=moves.conserved(state, predicted.energy, around),
            positions=current.positions,
            momenta=state.momentum,
            cell=current.cell,
            forces=predicted.forces,
            truncated=neighbors.truncated,
        )

    return observe
