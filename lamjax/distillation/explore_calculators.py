"""Relaxations and simulations with an ASE calculator, for explorations without a potential of lamjax."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ase
import numpy as np
from ase import units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE

from lamjax.data import Frame
from lamjax.distillation.calculators import FAILURES
from lamjax.distillation.config import ExploreConfig
from lamjax.distillation.explore import Engine, Simulation, Walk, conditions, described, found, stages, to_be_relaxed
from lamjax.relaxation import RelaxConfig
from lamjax.system import System, constraints, host_system, to_ase

FRICTION = 0.01  # 1/fs, of Langevin dynamics
COUPLING = 100.0, 1000.0  # fs, of Berendsen's thermostat and barostat
COMPRESSIBILITY = 0.01  # 1/GPa, that of a solid; it sets how fast the barostat works, not where it leads
HOT = 1e5  # K; a simulation that is hotter has exploded


def calculator_engine(make: Callable[[], Any]) -> Engine:
    """ASE's FIRE (with its cell filter), Langevin dynamics, and Berendsen's barostat where there is a pressure."""

    def relax(config: ExploreConfig, starts: Sequence[Frame], seed: int, first: int = 0) -> Iterator[Walk]:
        for number, start in enumerate(starts, first):
            frames, failure = [], None
            for draw, first_system in enumerate(to_be_relaxed(config, start, seed, number)):
                try:
                    for step, system in _relaxed(make(), config, _atoms(first_system, start)):
                        frames.append(found(system, start, "relaxation", step=step, seed=seed, draw=draw))
                except FAILURES as error:
                    failure = f"{start.source}, relaxed: {type(error).__name__}: {error}"
            yield Walk(frames, failure)

    def simulate(config: ExploreConfig, one: Simulation, seed: int) -> Walk:
        frames: list[ase.Atoms] = []
        try:
            for step, system in _simulated(make(), config, one, seed):
                frames.append(found(system, one.start, "simulation", step=step, **conditions(one), seed=seed))
        except FAILURES as error:
            return Walk(frames, f"{described(one)}: {type(error).__name__}: {error}")
        return Walk(frames)

    return Engine(relax, simulate)


def _relaxed(calculator: Any, config: ExploreConfig, atoms: ase.Atoms) -> Iterator[tuple[int, System]]:
    """(step, structure) after each stage of a relaxation, until it converges."""
    atoms.calc = calculator
    with FIRE(FrechetCellFilter(atoms) if config.relax_cell else atoms, logfile=None) as optimizer:
        for steps in stages(config):
            converged = optimizer.run(fmax=RelaxConfig.fmax, steps=steps)
            yield optimizer.nsteps, _checked(atoms)
            if converged:
                return


def _simulated(calculator: Any, config: ExploreConfig, one: Simulation, seed: int) -> Iterator[tuple[int, System]]:
    """(step, structure) of every `every`-th step."""
    atoms, rng = _atoms(one.start.system, one.start), np.random.RandomState(seed % 2**32)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=one.temperature, rng=rng)
    step = config.timestep * units.fs
    if one.pressure is None:
        friction = FRICTION / units.fs
        moves = Langevin(atoms, step, temperature_K=one.temperature, friction=friction, rng=rng, logfile=None)
    else:
        thermostat, barostat = (time * units.fs for time in COUPLING)
        moves = NPTBerendsen(
            atoms,
            step,
            temperature_K=one.temperature,
            pressure_au=one.pressure * units.GPa,
            taut=thermostat,
            taup=barostat,
            compressibility_au=COMPRESSIBILITY / units.GPa,
            logfile=None,
        )
    for done in range(config.every, config.steps + 1, config.every):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what explodes; it is looked for below
            moves.run(config.every)
        yield done, _checked(atoms)


def _atoms(system: System, start: Frame) -> ase.Atoms:
    atoms = to_ase(system)
    if "fixed" in start.info:
        atoms.set_constraint(constraints(start.info["fixed"]))
    return atoms


def _checked(atoms: ase.Atoms) -> System:
    """The structure; ValueError if it is none any more."""
    if not np.isfinite(atoms.get_forces()).all():
        raise ValueError("the forces are not finite (NaN or infinity).")
    if not (hot := atoms.get_temperature()) < HOT:
        raise ValueError(f"the temperature rose to {hot:.3g} K: the simulation explodes. Take a smaller time step.")
    return host_system(atoms)
