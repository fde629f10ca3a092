"""Exploration by a student: simulations, relaxations and random perturbations of the start structures."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
from jaxtyping import PyTree

from lamjax import dynamics, units
from lamjax.data import Frame
from lamjax.distillation.config import ExploreConfig
from lamjax.domains.moving import AnyShapes
from lamjax.lattice import projector
from lamjax.potential import Potential
from lamjax.relaxation import CellConfig, RelaxConfig, stream
from lamjax.system import System, to_ase

GROUP = 1024  # structures that are relaxed side by side


class Walk(NamedTuple):
    """The structures of one simulation, or of the perturbations or relaxations of one start."""

    frames: list[ase.Atoms]  # info: origin, and where it comes from
    failure: str | None = None  # why it ended early


class PlannedSimulation(NamedTuple):
    """A simulation that is to be made."""

    start: Frame
    temperature: float  # K
    pressure: float | None  # GPa


class Engine(NamedTuple):
    """Functions that move atoms: relaxations of some starts, numbered from `first`, and one simulation."""

    relax: Callable[..., Iterator[Walk]]  # (config, starts, seed, first)
    simulate: Callable[..., Walk]  # (config, simulation, seed)
    group: int = 1  # structures that are relaxed side by side


def explore(
    config: ExploreConfig, potential: Potential, params: PyTree, starts: Sequence[Frame], seed: int
) -> Iterator[Walk]:
    """The exploration of one round. A simulation that explodes keeps its frames until then, and the reason."""
    for part in parts(config, potential_engine(potential, params), starts, seed):
        yield from part()


def parts(
    config: ExploreConfig, engine: Engine | None, starts: Sequence[Frame], seed: int
) -> list[Callable[[], Iterator[Walk]]]:
    """An exploration in parts that do not depend on one another. Without an engine there are perturbations alone."""
    walks = [functools.partial(perturb, config, starts[k : k + 1], seed, k) for k in range(len(starts))]
    if engine is None:
        return walks
    group = max(engine.group // max(config.relaxations, 1), 1)
    for k in range(0, len(starts) if config.relaxations else 0, group):
        walks.append(functools.partial(engine.relax, config, starts[k : k + group], seed, k))
    for number, one in enumerate(simulations(config, starts, seed)):
        walks.append(functools.partial(lambda *what: iter([engine.simulate(*what)]), config, one, 1000 * seed + number))
    return walks


def potential_engine(potential: Potential, params: PyTree) -> Engine:
    """Relaxations many at a time, and simulations, on the surface of a potential."""
    room: dict[int, AnyShapes] = {}
    return Engine(
        functools.partial(relax_with, potential, params),
        lambda config, one, seed: simulate(config, potential, params, one, seed, room),
        GROUP,
    )


def plain_start(frame: Frame) -> Frame:
    """The frame with an info of fixed atoms alone: how it was made before does not describe what is made of it."""
    return frame._replace(info={key: value for key, value in frame.info.items() if key == "fixed"})


def beginnings(starts: Sequence[Frame]) -> list[ase.Atoms]:
    """The starts themselves, and those that are substitutions."""
    made = [("substitution" if "substituted" in start.info else "start", start) for start in starts]
    return [explored_atoms(one.system, one, origin, **_kept(one, ("seed", "draw"))) for origin, one in made]


def n_walks(config: ExploreConfig, n_starts: int) -> int:
    """The number of walks that `explore` yields."""
    n = n_starts * len(config.temperatures) * max(1, len(config.pressures))
    n = n if config.simulations is None else min(n, config.simulations)
    return n_starts * (2 if config.relaxations else 1) + n


def simulations(config: ExploreConfig, starts: Sequence[Frame], seed: int) -> list[PlannedSimulation]:
    """Each start at each temperature and pressure, or so many of them, drawn with the seed."""
    pressures = config.pressures or (None,)
    every = [PlannedSimulation(*one) for one in itertools.product(starts, config.temperatures, pressures)]
    if config.simulations is None or config.simulations >= len(every):
        return every
    chosen = np.random.default_rng(seed).choice(len(every), config.simulations, replace=False)
    return [every[k] for k in np.sort(chosen)]


def simulate(
    config: ExploreConfig,
    potential: Potential,
    params: PyTree,
    one: PlannedSimulation,
    seed: int,
    room: dict[int, AnyShapes] | None = None,
) -> Walk:
    """A simulation at constant volume (Langevin), or at constant pressure; the frames of every `every`-th step.

    `room` keeps the widest arrays by number of atoms: what is compiled for one structure serves the next one.
    """
    room, n_atoms = {} if room is None else room, one.start.system.n_atoms
    step: dict[str, Any] = {"timestep": config.timestep, "temperature": one.temperature}
    if one.pressure is None:
        ensemble = dynamics.nvt(potential, dynamics.NVTConfig(**step))
    else:
        ensemble = dynamics.npt(potential, dynamics.NPTConfig(**step, pressure=one.pressure * units.GPA))
    frames: list[ase.Atoms] = []
    try:
        fixed = one.start.info.get("fixed")
        first = dynamics.begin(ensemble, params, one.start.system, fixed=fixed, seed=seed, room=room.get(n_atoms))
        for simulation, record in dynamics.simulate(ensemble, params, first, config.steps, config.every):
            room[n_atoms] = simulation.shapes
            for k, number in enumerate(record.step.tolist()):
                structure = one.start.system._replace(positions=record.positions[k], cell=record.cell[k])
                frames.append(
                    explored_atoms(structure, one.start, "simulation", step=number, **conditions(one), seed=seed)
                )
    except (dynamics.DynamicsError, ValueError) as error:  # ordinary for a student that knows little
        return Walk(frames, f"{described(one)}: {error}")
    return Walk(frames)


def conditions(one: PlannedSimulation) -> dict[str, float]:
    """Temperature (K), and pressure (GPa) if there is one."""
    return {"temperature": one.temperature} | ({} if one.pressure is None else {"pressure": one.pressure})


def described(one: PlannedSimulation) -> str:
    """A simulation in words."""
    return f"{one.start.source} at {one.temperature:g} K" + ("" if one.pressure is None else f", {one.pressure:g} GPa")


def perturb(config: ExploreConfig, starts: Sequence[Frame], seed: int, first: int = 0) -> Iterator[Walk]:
    """Each start with random displacements and strains; `first` is the number of the first among all starts."""
    for number, start in enumerate(starts, first):
        rng = np.random.default_rng((seed, number))
        systems = [perturbed(start, rng, config.displacement, config.strain) for _ in range(config.perturbed)]
        yield Walk([explored_atoms(one, start, "perturbation", seed=seed, draw=k) for k, one in enumerate(systems)])


def perturbed(start: Frame, rng: np.random.Generator, displacement: float, strain: float) -> System:
    """The start strained within its periodic directions, its free atoms moved; normal deviates (strain; Å)."""
    system, fixed = start.system, start.info.get("fixed")
    drawn = rng.normal(size=(3, 3))
    epsilon = strain * (drawn + drawn.T) / 2
    moved = displacement * rng.normal(size=system.positions.shape)
    if fixed is not None:
        epsilon, moved = 0 * epsilon, np.where(fixed, 0, moved)  # fixed components must not move
    inside = projector(system.cell, system.pbc)
    change = np.eye(3) + inside @ epsilon @ inside
    return system._replace(positions=system.positions @ change + moved, cell=system.cell @ change)


def relax_with(
    potential: Potential, params: PyTree, config: ExploreConfig, starts: Sequence[Frame], seed: int, first: int = 0
) -> Iterator[Walk]:
    """Perturbed starts along some steps of relaxation; a cell that relaxes does so without pressure."""
    owners = [k for k in range(len(starts)) for _ in range(config.relaxations)]
    places = [to_be_relaxed(config, start, seed, number) for number, start in enumerate(starts, first)]
    systems = [system for mine in places for system in mine]
    fixed = [starts[k].info.get("fixed") for k in owners]
    walks: list[list[ase.Atoms]] = [[] for _ in owners]
    failures: list[str | None] = [None] * len(starts)
    going, done = list(range(len(owners))), 0
    for steps in stages(config):
        settings = RelaxConfig(max_steps=steps, cell=CellConfig() if config.relax_cell else None)
        outcomes = stream(potential, params, [systems[i] for i in going], settings, fixed=[fixed[i] for i in going])
        at, going, done = going, [], done + steps
        for outcome in outcomes:
            i = at[outcome.number]
            k = owners[i]
            if outcome.error is not None:
                failures[k] = f"{starts[k].source}, relaxed: {outcome.error}"
                continue
            systems[i] = outcome.relaxation.system
            step = done - steps + int(outcome.relaxation.n_steps)
            facts = {"step": step, "seed": seed, "draw": i - owners.index(k)}
            walks[i].append(explored_atoms(systems[i], starts[k], "relaxation", **facts))
            going += [] if outcome.relaxation.converged else [i]
        going.sort()
        if not going:
            break
    for k, failure in enumerate(failures):
        yield Walk([atoms for i, walk in enumerate(walks) if owners[i] == k for atoms in walk], failure)


def to_be_relaxed(config: ExploreConfig, start: Frame, seed: int, number: int) -> list[System]:
    """The perturbed structures from which the relaxations of a start begin."""
    rng = np.random.default_rng((seed, number, 1))
    return [perturbed(start, rng, config.displacement, config.strain) for _ in range(config.relaxations)]


def stages(config: ExploreConfig) -> list[int]:
    """Steps of relaxation from one frame that is kept to the next."""
    every = config.relax_steps if config.relax_every is None else min(config.relax_every, config.relax_steps)
    whole, rest = divmod(config.relax_steps, every)
    return [every] * whole + [rest] * bool(rest)


def explored_atoms(system: System, start: Frame, origin: str, **facts: Any) -> ase.Atoms:
    """The structure, whose info names its `origin`, its `start` and the settings that led to it."""
    atoms = to_ase(system)
    atoms.info |= {"origin": origin, "start": start.source, **_kept(start, ("substituted",)), **facts}
    return atoms


def _kept(start: Frame, keys: Sequence[str]) -> dict:
    """The info of a start that says how a substitution was made."""
    return {key: start.info[key] for key in keys if "substituted" in start.info}
