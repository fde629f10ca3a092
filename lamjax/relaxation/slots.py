"""Places for structures in a batch that runs on the device: structures enter, take steps, and are read off."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics, pytree
from lamjax.neighbors import verlet
from lamjax.neighbors.host import pairs
from lamjax.potential import Potential
from lamjax.relaxation import buckets
from lamjax.relaxation import lists as listing
from lamjax.relaxation.buckets import Shape
from lamjax.relaxation.flat import Flat
from lamjax.relaxation.lists import Lists
from lamjax.relaxation.minimisers import MinimiserConfig, minimiser
from lamjax.relaxation.relax import Relaxation, RelaxConfig, result
from lamjax.relaxation.steps import Progress, Steps, Weights
from lamjax.relaxation.surface import Surface, over
from lamjax.system import System, pad


class Slots(NamedTuple):
    """A batch in which every structure is at a step of its own."""

    surface: Surface
    lists: Lists
    state: Progress
    limit: Int[Array, " n_slots"]  # of its steps


class Traveller(NamedTuple):
    """A structure on its way, on the host and without padding."""

    reference: System  # as it was given
    fixed: Bool[np.ndarray, "n_atoms 3"]
    system: System  # where it is
    state: Progress | None = None  # None: it has not begun


class Entry(NamedTuple):
    """The arrays of a structure that enters a slot; numpy, padded."""

    reference: System
    fixed: Bool[np.ndarray, "n_atoms 3"]
    lists: Lists
    z: Float[np.ndarray, "rows 3"]  # Å, where it is
    state: Progress
    is_new: Bool[np.ndarray, ""]  # its state does not count
    limit: Int[np.ndarray, ""]


class Report(NamedTuple):
    """The results of some steps, for the host."""

    relaxation: Relaxation
    running: Bool[Array, " n_slots"]


class Programs(NamedTuple):
    """Compiled once for each number of slots; the memory of the slots is reused."""

    begin: Callable  # (entries) -> slots
    enter: Callable  # (slots, rows, entries) -> slots; a row beyond the last slot is left out
    steps: Callable  # (params, slots, steps at most, running structures to stop at) -> (slots, report)


@functools.lru_cache(maxsize=64)
def programs(potential: Potential, config: RelaxConfig, capacities: tuple[int, ...], n_flat: int) -> Programs:
    """The functions of a shape; the potential sees lists of `n_flat` atoms.

    The same arguments give the same functions, so that jit does not compile twice.
    """
    method = minimiser(config.minimiser)
    steps = Steps(method, Flat(capacities, config.skin, n_flat), config.fmax)

    def running(slots: Slots, state: Progress) -> Bool[Array, " n_slots"]:
        return steps.active(state) & ~state.overflow & (state.n_steps < slots.limit)

    def enter(slots: Slots, rows, entries: Entry) -> Slots:
        return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), slots, beginning(entries))

    def beginning(entries: Entry) -> Slots:
        new = steps.start(method.numbers(entries.z.dtype), entries.z, len(potential.shells))
        surface = over(potential, entries.reference, entries.fixed, config.cell)
        return Slots(surface, entries.lists, pytree.where(entries.is_new, new, entries.state), entries.limit)

    def step(weights: Weights, slots: Slots) -> Slots:
        surface, lists, state = slots.surface, slots.lists, slots.state
        active = running(slots, state)
        z = steps.propose(weights, surface, state, active)
        lists = steps.layout.refresh(surface, lists, z)
        evaluated = steps.layout.evaluate(surface, weights.params, z, lists, active)
        # a step without all neighbours is not taken: it is repeated in wider arrays, as if it had been there at once
        missed = active & evaluated.overflow
        new = steps.accept(weights, surface, state, active, (z, evaluated))
        old = state._replace(
            overflow=state.overflow | missed,
            largest_counts=jnp.maximum(state.largest_counts, jnp.where(missed[:, None], evaluated.largest_counts, 0)),
        )
        return slots._replace(lists=lists, state=pytree.where(active & ~missed, new, old))

    def take_steps(params, slots: Slots, most, keep):
        cells = slots.surface.reference.cell
        weights = Weights(params, method.numbers(cells.dtype), cells)

        def continues(carry):
            slots, n = carry
            return (n < most) & (jnp.sum(running(slots, slots.state)) > keep)

        slots, _ = jax.lax.while_loop(continues, lambda carry: (step(weights, carry[0]), carry[1] + 1), (slots, 0))
        return slots, Report(result(slots.surface, slots.state, steps), running(slots, slots.state))

    jit = functools.partial(jax.jit, compiler_options=numerics.compiler_options())
    return Programs(jit(beginning), jit(enter, donate_argnums=0), jit(take_steps, donate_argnums=1))


def empty_entry(potential: Potential, config: RelaxConfig, shape: Shape, like: System) -> Entry:
    """An entry without atoms, for structures that have what `like` has; it never takes a step."""
    n = shape.n_atoms
    system = jax.tree.map(np.zeros_like, like)._replace(
        positions=np.zeros((n, 3), like.positions.dtype),
        numbers=np.zeros(n, np.int32),
        aparam=None if like.aparam is None else np.zeros((n, like.aparam.shape[1]), like.aparam.dtype),
    )
    none = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0)
    lists = _lists(potential, config, shape, system, (none, np.inf), (n, np.zeros((0, 3))))
    state = _blank(config.minimiser, len(potential.shells), n, system.positions.dtype)
    z = np.zeros((n + 3, 3), system.positions.dtype)
    return Entry(system, np.zeros((n, 3), bool), lists, z, state, np.asarray(True), np.asarray(-1, np.int32))


def entry(potential: Potential, config: RelaxConfig, shape: Shape, traveller: Traveller) -> Entry:
    """A structure with the list of its neighbours, found on the host."""
    n, system, state = shape.n_atoms, traveller.system, traveller.state
    reach = potential.cutoff + config.skin
    images = buckets.offsets(potential, system, config)
    lists = _lists(potential, config, shape, pad(system, n), (pairs(system, reach), reach), (system.n_atoms, images))
    z = np.concatenate([system.positions, np.zeros((3, 3), system.positions.dtype)]) if state is None else state.z
    if state is None:
        state = _blank(config.minimiser, len(potential.shells), system.n_atoms, system.positions.dtype)
    missing = n - system.n_atoms

    def padded(z):
        return np.concatenate([z[:-3], np.zeros((missing, *z.shape[1:]), z.dtype), z[-3:]])

    return Entry(
        reference=pad(traveller.reference, n),
        fixed=np.pad(traveller.fixed, ((0, missing), (0, 0))),
        lists=lists,
        z=padded(z),
        state=_rows(config.minimiser, state, padded),
        is_new=np.asarray(traveller.state is None),
        limit=np.asarray(config.max_steps, np.int32),
    )


def stack(entries: Sequence[Entry], n: int) -> Entry:
    """Entries in arrays for n; the first one again where there are fewer."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *entries, *[entries[0]] * (n - len(entries)))


def relaxation_of(report: Report, row: int, n_atoms: int) -> Relaxation:
    """One structure of a report on the host, without padding."""
    one = jax.tree.map(lambda x: np.asarray(x)[row], report.relaxation)
    z, system = one.coordinates, one.system
    system = system._replace(
        positions=system.positions[:n_atoms],
        numbers=system.numbers[:n_atoms],
        aparam=None if system.aparam is None else system.aparam[:n_atoms],
    )
    return one._replace(system=system, forces=one.forces[:n_atoms], coordinates=np.concatenate([z[:n_atoms], z[-3:]]))


def state_of(slots: Slots, row: int, n_atoms: int, config: RelaxConfig) -> Progress:
    """The state of one structure on the host, without padding, from which wider arrays can go on."""
    one = jax.tree.map(lambda x: np.asarray(x[row]), slots.state)
    one = _rows(config.minimiser, one, lambda z: np.concatenate([z[:n_atoms], z[-3:]]))
    return one._replace(overflow=np.zeros((), bool))


def _rows(config: MinimiserConfig, state: Progress, change: Callable) -> Progress:
    """A state with whatever the minimiser keeps for each coordinate changed; coordinates are the first axis then."""

    def changed(x, axis: int):
        return x if axis < 0 else np.moveaxis(change(np.moveaxis(x, axis, 0)), 0, axis)

    return state._replace(walker=jax.tree.map(changed, state.walker, _row_axes(config)))


@functools.lru_cache(maxsize=64)
def _row_axes(config: MinimiserConfig) -> Any:
    """Which axis of the arrays of a minimiser's state has the coordinates, by their shapes for two sizes; -1: none."""

    def axis(a: Any, b: Any) -> int:
        return next((k for k, both in enumerate(zip(a.shape, b.shape, strict=True)) if both == (1 + 3, 2 + 3)), -1)

    return jax.tree.map(axis, *(_blank(config, 1, n, np.float32).walker for n in (1, 2)))


@functools.lru_cache(maxsize=256)
def _blank(config: MinimiserConfig, n_shells: int, n_atoms: int, dtype: DTypeLike) -> Progress:
    """A state of zeros for one structure, numpy."""
    method, dtype = minimiser(config), jax.dtypes.canonicalize_dtype(dtype)
    z = jax.ShapeDtypeStruct((1, n_atoms + 3, 3), dtype)
    shapes = jax.eval_shape(lambda z: Steps(method, None, 0.0).start(method.numbers(dtype), z, n_shells), z)
    return jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), shapes)


def _lists(potential, config: RelaxConfig, shape: Shape, padded: System, pairs_within, candidates) -> Lists:
    """The lists of a padded structure, of all pairs within a radius; `candidates` are atoms and images of a search."""
    all_pairs, radius = pairs_within
    width = verlet.slots(shape.capacities[0], potential.cutoff, config.skin)
    width = min(width, shape.n_candidates)
    made = verlet.from_pairs(padded, all_pairs, potential.shells, np.zeros((0, 3)), width, radius)
    return Lists(made, *listing.candidates(*candidates, shape.n_candidates))
