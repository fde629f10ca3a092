"""Where a student goes: simulations, relaxations and random perturbations of the start structures."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ase
import numpy as np

from lamjax import dynamics, units
from lamjax.data import Frame
from lamjax.distillation.config import ExploreConfig
from lamjax.neighbors.grid import Shapes
from lamjax.relaxation import RelaxConfig, stream
from lamjax.system import System, complete_cell, to_ase


class Walk(NamedTuple):
    """What came of one simulation, or of one start's perturbations or relaxations."""

    frames: list[ase.Atoms]  # info: origin, and where it comes from
    failure: str | None = None  # why it ended early


class Simulation(NamedTuple):
    """A simulation that is to be made."""

    start: Frame
    temperature: float  # K
    pressure: float | None  # GPa


def explore(config: ExploreConfig, potential, params, starts: Sequence[Frame], seed: int) -> Iterator[Walk]:
    """All that a student does in a round. A simulation that explodes keeps its frames until then, and says why."""
    yield from perturb(config, starts, seed)
    if config.relaxations:
        yield from relax(config, potential, params, starts, seed)
    room: dict[int, Shapes] = {}
    for number, one in enumerate(simulations(config, starts, seed)):
        yield simulate(config, potential, params, one, 1000 * seed + number, room)


def n_walks(config: ExploreConfig, n_starts: int) -> int:
    """How many walks `explore` yields."""
    n = n_starts * len(config.temperatures) * max(1, len(config.pressures))
    n = n if config.simulations is None else min(n, config.simulations)
    return n_starts * (2 if config.relaxations else 1) + n


def simulations(config: ExploreConfig, starts: Sequence[Frame], seed: int) -> list[Simulation]:
    """Each start at each temperature and pressure, or so many of them, drawn with the seed."""
    pressures = config.pressures or (None,)
    every = [Simulation(*one) for one in itertools.product(starts, config.temperatures, pressures)]
    if config.simulations is None or config.simulations >= len(every):
        return every
    chosen = np.random.default_rng(seed).choice(len(every), config.simulations, replace=False)
    return [every[k] for k in np.sort(chosen)]


def simulate(
    config: ExploreConfig, potential, params, one: Simulation, seed: int, room: dict[int, Shapes] | None = None
) -> Walk:
    """A simulation at constant volume (Langevin), or at constant pressure; the frames of every `every`-th step.

    `room` keeps the widest arrays by number of atoms: what is compiled for one structure serves the next one.
    """
    room, n_atoms = {} if room is None else room, one.start.system.n_atoms
    step = {"timestep": config.timestep, "temperature": one.temperature}
    if one.pressure is None:
        ensemble = dynamics.nvt(potential, dynamics.NVTConfig(**step))
    else:
        ensemble = dynamics.npt(potential, dynamics.NPTConfig(**step, pressure=one.pressure * units.GPA))
    said = f"{one.start.source} at {one.temperature:g} K" + ("" if one.pressure is None else f", {one.pressure:g} GPa")
    frames: list[ase.Atoms] = []
    try:
        fixed = one.start.info.get("fixed")
        first = dynamics.begin(ensemble, params, one.start.system, fixed=fixed, seed=seed, room=room.get(n_atoms))
        for simulation, seen in dynamics.simulate(ensemble, params, first, config.steps, config.every):
            room[n_atoms] = simulation.shapes
            for k, number in enumerate(seen.step.tolist()):
                here = one.start.system._replace(positions=seen.positions[k], cell=seen.cell[k])
                facts = {"step": number, "temperature": one.temperature}
                facts |= {} if one.pressure is None else {"pressure": one.pressure}
                frames.append(found(here, one.start, "simulation", **facts))
    except (dynamics.DynamicsError, ValueError) as error:  # ordinary for a student that knows little
        return Walk(frames, f"{said}: {error}")
    return Walk(frames)


def perturb(config: ExploreConfig, starts: Sequence[Frame], seed: int) -> Iterator[Walk]:
    """Each start with random displacements and strains."""
    for number, start in enumerate(starts):
        rng = np.random.default_rng((seed, number))
        systems = [perturbed(start, rng, config.displacement, config.strain) for _ in range(config.perturbed)]
        yield Walk([found(one, start, "perturbation") for one in systems])


def perturbed(start: Frame, rng: np.random.Generator, displacement: float, strain: float) -> System:
    """The start strained within its periodic directions, its free atoms moved; normal deviates (strain; Å)."""
    system, fixed = start.system, start.info.get("fixed")
    drawn = rng.normal(size=(3, 3))
    epsilon = strain * (drawn + drawn.T) / 2
    moved = displacement * rng.normal(size=system.positions.shape)
    if fixed is not None:
        epsilon, moved = 0 * epsilon, np.where(fixed, 0, moved)  # what is fixed must stay where it is
    inside = _onto_periodic(system)
    change = np.eye(3) + inside @ epsilon @ inside
    return system._replace(positions=system.positions @ change + moved, cell=system.cell @ change)


def relax(config: ExploreConfig, potential, params, starts: Sequence[Frame], seed: int) -> Iterator[Walk]:
    """Perturbed starts, where a few steps of relaxation take them; with pressures the cell is not relaxed."""
    owners = [k for k in range(len(starts)) for _ in range(config.relaxations)]
    rngs = [np.random.default_rng((seed, number, 1)) for number in range(len(starts))]
    systems = [perturbed(starts[k], rngs[k], config.displacement, config.strain) for k in owners]
    fixed = [starts[k].info.get("fixed") for k in owners]
    ends: list[list[ase.Atoms]] = [[] for _ in starts]
    failures: list[str | None] = [None] * len(starts)
    for outcome in stream(potential, params, systems, RelaxConfig(max_steps=config.relax_steps), fixed=fixed):
        k = owners[outcome.number]
        if outcome.error is not None:
            failures[k] = f"{starts[k].source}, relaxed: {outcome.error}"
        else:
            ends[k].append(found(outcome.relaxation.system, starts[k], "relaxation"))
    yield from map(Walk, ends, failures)


def _onto_periodic(system: System) -> np.ndarray:
    """The projection (3, 3) on the periodic directions; 0 for a molecule."""
    cell = complete_cell(system.cell, system.pbc)
    rows = cell[np.asarray(system.pbc)]
    return np.linalg.pinv(rows) @ rows if len(rows) else np.zeros((3, 3))


def found(system: System, start: Frame, origin: str, **facts) -> ase.Atoms:
    """A frame that says where it comes from."""
    atoms = to_ase(system)
    atoms.info |= {"origin": origin, "start": start.source, **facts}
    return atoms
