"""A simulation in chunks: the device moves atoms and keeps their lists, the host looks between chunks."""

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import ase.data
import jax
import numpy as np
from jaxtyping import Array, Bool, PyTree

from lamjax import units
from lamjax.domains.moving import AnyShapes
from lamjax.dynamics import ensembles
from lamjax.dynamics.ensembles import Ensemble, NPTConfig, Surroundings, thermal_momenta
from lamjax.dynamics.records import Record
from lamjax.dynamics.stepping import CHUNK, FARTHEST, Span, StepDiagnostics, programs
from lamjax.neighbors.grid import Spare
from lamjax.potential import check_elements
from lamjax.system import MASSES, System, as_jax_casts, check_single, fixed_mask

SKIN = 1.0  # Å
HEADROOM = 1.1  # slots relative to the neighbours of the start: empty ones cost time, and too few become more
DRIFT = 1e-6  # of the kinetic energy; less of it is left
TRIES = 5  # times in a row that arrays grow without a step


class DynamicsError(RuntimeError):
    """A simulation cannot go on. `simulation` is the last good state."""

    def __init__(self, message: str, simulation: "Simulation") -> None:
        super().__init__(message)
        self.simulation = simulation


class Simulation(NamedTuple):
    """The state of a simulation: all that is needed to continue it, to the last digit."""

    state: Any  # jax-md's: positions, momenta, thermostats, random numbers
    system: System  # numbers, pbc, and the cell of the start
    fixed: Bool[Array, "n_atoms 3"]
    lists: Any  # neighbours, of the ensemble's evaluator
    shapes: AnyShapes
    step: int
    n_grown: int = 0  # times that arrays became wider on the way


def begin(
    ensemble: Ensemble,
    params: PyTree,
    system: System,
    *,
    temperature: float | None = None,
    momenta: Array | None = None,
    fixed: Array = None,
    seed: int = 0,
    skin: float = SKIN,
    room: AnyShapes | None = None,
) -> Simulation:
    """A simulation at its first step.

    Momenta (sqrt(amu eV), as in ASE) are given, or drawn at `temperature` (K; default: that of the ensemble) with
    `seed`. A drift of the centre of mass is no heat: it is taken off given momenta, with a warning, along axes without
    fixed atoms; the rotation of a molecule is left as it is. Components that are `fixed` (n_atoms, 3) do not move.
    Arrays are at least as wide as `room`, the `shapes` of an earlier simulation of as many atoms, so that what was
    compiled for it serves again. Raises ValueError for what cannot begin: unknown elements, padding, atoms on one
    place, momenta of another shape or not finite, a cell that is to change but is not periodic, fixed atoms with a
    Nosé-Hoover chain.
    """
    check_single(system, "A simulation")
    system = host = as_jax_casts(jax.tree.map(np.asarray, system))
    check_elements(ensemble.potential, host)
    fixed = np.zeros((host.n_atoms, 3), bool) if fixed is None else np.asarray(fixed_mask(fixed, host.numbers))
    ensembles.check(ensemble, host, fixed)
    if momenta is None:
        wanted = getattr(ensemble.config, "temperature", None) if temperature is None else temperature
        if wanted is None:
            raise ValueError("Give momenta, or a temperature (K) at which they are drawn: nve has none of its own.")
        if not (np.isfinite(wanted) and wanted >= 0):
            raise ValueError(f"temperature is {wanted} K; momenta are drawn at 0 K or more.")
        momenta = thermal_momenta(ensemble.config, host, fixed, wanted, seed)
    else:
        momenta = _checked_momenta(host, fixed, momenta)
    momenta = momenta.astype(host.positions.dtype)
    shapes, bath = _shapes(ensemble, host, skin, room), ensembles.bath(ensemble.config)
    while True:
        lists = ensemble.evaluator.blank(host, shapes)
        made = programs(ensemble, shapes, skin)
        around = Surroundings(bath, params, system, lists, fixed)
        state, lists, diagnostics = made.start(around, momenta, jax.random.key(seed))
        simulation = Simulation(state, system, fixed, lists, shapes, 0)
        if diagnostics.ok:
            return simulation
        grown = _grown(ensemble, simulation, diagnostics, skin)
        if grown == shapes:
            raise ValueError("Energy or forces of the start are infinite or NaN. Relax it first, or look at its atoms.")
        shapes = grown


def _checked_momenta(system: System, fixed: np.ndarray, momenta: Array | None) -> np.ndarray:
    """Momenta that were given, checked, 0 where atoms are fixed and without a drift of the centre of mass."""
    momenta = np.asarray(momenta, np.float64)
    if momenta.shape != (system.n_atoms, 3):
        raise ValueError(f"momenta have shape {momenta.shape}; expected {(system.n_atoms, 3)}, a vector for each atom.")
    if bad := np.flatnonzero(~np.isfinite(momenta).all(axis=1)).tolist():
        raise ValueError(
            f"The momentum of atom {bad[0]} is {momenta[bad[0]]}: not finite. Repair the start, or leave momenta out: "
            "they are then drawn."
        )
    momenta, mass = np.where(fixed, 0, momenta), MASSES[np.asarray(system.numbers)][:, None]
    velocity = ensembles.drift(system, fixed, momenta)
    of_drift, whole = mass.sum() * np.sum(velocity**2), np.sum(momenta**2 / mass)
    if of_drift <= DRIFT * whole:  # rounding
        return momenta
    warnings.warn(
        f"The momenta had a drift: the centre of mass moved with {np.linalg.norm(velocity) * units.FS:.3g} Å/fs, "
        f"{of_drift / whole:.0%} of the kinetic energy. It is taken off, since it is no heat.",
        stacklevel=3,
    )
    return momenta - mass * velocity


def like(ensemble: Ensemble, params: PyTree, simulation: Simulation) -> Simulation:
    """The simulation with the shapes of its state and lists (jax.ShapeDtypeStruct) in their places."""
    system, shapes = simulation.system, simulation.shapes
    lists = ensemble.evaluator.blank(system, shapes)
    start, bath = programs(ensemble, shapes, SKIN).start, ensembles.bath(ensemble.config)
    around = Surroundings(bath, params, system, lists, simulation.fixed)
    state, lists, _ = jax.eval_shape(start, around, system.positions, jax.random.key(0))
    return simulation._replace(state=state, lists=lists)


def simulate(
    ensemble: Ensemble,
    params: PyTree,
    simulation: Simulation,
    n_steps: int,
    every: int = 20,
    skin: float = SKIN,
    seconds: float = math.inf,
) -> Iterator[tuple[Simulation, Record]]:
    """`n_steps` more steps: after each chunk the simulation and the records of its steps.

    Recorded are steps whose number is a multiple of `every`, and the last one. The device works on the next chunk while
    the caller has this one. A chunk takes at most `CHUNK` records and about `seconds`, but at least one record; how
    steps are divided into chunks changes no digit of them. Lists are searched anew when an atom (or the cell) has
    moved by half the skin; arrays that become too narrow grow, and no step is lost or made with missing neighbours.
    Raises DynamicsError, with the last good state, if an atom moves more than 1 Å in a step or forces become infinite.
    """
    _check_fits(ensemble, simulation)
    last, failures, ready = simulation.step + n_steps, 0, None
    n_records = CHUNK if math.isinf(seconds) else 1
    while simulation.step < last:
        made, began = programs(ensemble, simulation.shapes, skin), time.monotonic()
        n_records = min(n_records, math.ceil(last / every) - simulation.step // every)
        span = Span(simulation.step, last, every, n_records)
        moved = made.chunk(simulation.state, _around(ensemble, params, simulation), span)
        if ready is not None:  # the device is at work
            yield ready
        state, lists, step, ok, n_made, records = jax.block_until_ready(moved)
        failures = 0 if int(step) > simulation.step else failures
        simulation = simulation._replace(state=state, lists=lists, step=int(step))
        ready = (simulation, Record(*(np.asarray(x)[: int(n_made)] for x in records))) if n_made else None
        if not math.isinf(seconds):
            n_records = max(1, int(min(CHUNK, n_records * seconds / (time.monotonic() - began))))
        if not ok:
            if ready is not None:
                yield ready
            ready, failures = None, failures + 1
            simulation = _wider(ensemble, params, simulation, skin, failures == TRIES)
    if ready is not None:
        yield ready


def observe(ensemble: Ensemble, params: PyTree, simulation: Simulation, skin: float = SKIN) -> Record:
    """The record of the present step of a simulation. Nothing is compiled that `simulate` does not."""
    _check_fits(ensemble, simulation)
    chunk, around = programs(ensemble, simulation.shapes, skin).chunk, _around(ensemble, params, simulation)
    *_, records = chunk(simulation.state, around, Span(simulation.step, simulation.step, 1, 1))
    return Record(*(np.asarray(x)[:1] for x in records))


def _around(ensemble: Ensemble, params: PyTree, simulation: Simulation) -> Surroundings:
    bath = ensembles.bath(ensemble.config)
    return Surroundings(bath, params, simulation.system, simulation.lists, simulation.fixed)


def _check_fits(ensemble: Ensemble, simulation: Simulation) -> None:
    """Raise ValueError for a simulation in arrays of another kind of potential; other cutoffs are searched anew."""
    n_wanted, n_had = len(ensemble.potential.shells), len(simulation.shapes.capacities)
    if n_wanted != n_had:
        raise ValueError(
            f"The simulation was begun with a potential of {n_had} cutoffs, this one has {n_wanted}. Begin again with "
            "it, from simulation.system and the momenta in simulation.state."
        )


def _wider(ensemble: Ensemble, params: PyTree, simulation: Simulation, skin: float, give_up: bool) -> Simulation:
    """The simulation in arrays for the step that did not fit; DynamicsError if that is not what was wrong."""
    look = programs(ensemble, simulation.shapes, skin).look
    diagnostics = look(simulation.state, _around(ensemble, params, simulation))
    shapes = _grown(ensemble, simulation, diagnostics, skin)
    if shapes == simulation.shapes or give_up:
        raise DynamicsError(_why(simulation, diagnostics, ensemble), simulation)
    lists = ensemble.evaluator.blank(simulation.system, shapes)
    return simulation._replace(shapes=shapes, lists=lists, n_grown=simulation.n_grown + 1)


def _shapes(ensemble: Ensemble, system: System, skin: float, least: Any = None) -> Any:
    """Shapes of arrays with room for the neighbours of a structure and some more."""
    shrinking = 1.02 if isinstance(ensemble.config, NPTConfig) else 1.0  # the bins may become thinner
    return ensemble.evaluator.shapes(system, Spare(skin, HEADROOM, shrinking), least)


def _grown(ensemble: Ensemble, simulation: Simulation, diagnostics: StepDiagnostics, skin: float) -> Any:
    """Shapes for the step that did not fit; the same ones if that is not what was wrong."""
    shapes, shells = simulation.shapes, ensemble.potential.shells
    wanted = [
        n if s.sel is None else min(n, s.sel) for n, s in zip(diagnostics.neighbors.tolist(), shells, strict=True)
    ]
    fits = all(n <= c for n, c in zip(wanted, shapes.capacities, strict=True))
    has_room = np.all(np.asarray(diagnostics.fullest) <= ensemble.evaluator.rooms(shapes))
    has_reach = float(diagnostics.radius) >= shells[0].cutoff and has_room
    current = jax.tree.map(np.asarray, diagnostics.system)
    if (fits and has_reach) or not np.isfinite(current.positions).all() or not np.isfinite(current.cell).all():
        return shapes
    # by rounding, the host may or may not count pairs at the cutoff itself
    room = tuple(max(n, c) for n, c in zip(wanted, shapes.capacities, strict=True))
    return _shapes(ensemble, current, skin, shapes._replace(capacities=room))


def _why(simulation: Simulation, diagnostics: StepDiagnostics, ensemble: Ensemble) -> str:
    """A message: what went wrong in the step that could not be made."""
    moved = np.asarray(diagnostics.moved)
    k = int(np.argmax(np.where(np.isfinite(moved), moved, np.inf)))
    what = f"atom {k} ({ase.data.chemical_symbols[int(simulation.system.numbers[k])]})"
    moves = f"moves {moved[k]:.2f} Å in one step" if np.isfinite(moved[k]) else "is nowhere: its position is not finite"
    fault = f"{what} {moves}"
    if np.isfinite(moved).all() and moved[k] < FARTHEST:
        fault = "energy or forces became infinite or NaN"
    config = ensemble.config
    slower = f"lengthen barostat_time (now {config.barostat_time:g} fs), " if isinstance(config, NPTConfig) else ""
    return (
        f"Step {simulation.step + 1}: {fault}. The last good state is that of step {simulation.step}. Shorten the time "
        f"step (now {config.timestep:g} fs), {slower}relax the start first, or look whether the potential knows what "
        "it sees."
    )
