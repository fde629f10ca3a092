"""Relaxations and simulations with an ASE calculator, for explorations without a potential of lamjax."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ase
import numpy as np
from ase import units

from lamjax.data import Frame
from lamjax.distillation.calculators import FAILURES
from lamjax.distillation.config import ExploreConfig
from lamjax.distillation.exploration import (
    Engine,
    PlannedSimulation,
    Walk,
    conditions,
    described,
    explored_atoms,
    stages,
    to_be_relaxed,
)
from lamjax.relaxation import RelaxConfig
from lamjax.system import System, constraints, host_system, to_ase

FRICTION = 0.01  # 1/fs, of Langevin dynamics
BAROSTAT = 100.0  # fs, in which the pressure comes near
COMPRESSIBILITY = 0.01  # 1/GPa, that of a solid; it sets how fast the barostat works, not where it leads
CHANGE = 0.98, 1.02  # of the volume in a step, at most
HOT = 1e5  # K; a simulation that is hotter has exploded


def calculator_engine(make: Callable[[], Any]) -> Engine:
    """ASE's FIRE (with its cell filter), Langevin dynamics, and Berendsen's barostat where there is a pressure.

    The dynamics are written here: ASE's warn of their own successors, and draw other numbers in other versions.
    """

    def relax(config: ExploreConfig, starts: Sequence[Frame], seed: int, first: int = 0) -> Iterator[Walk]:
        for number, start in enumerate(starts, first):
            frames, failure = [], None
            for draw, first_system in enumerate(to_be_relaxed(config, start, seed, number)):
                try:
                    for step, system in _relaxed(make(), config, _atoms(first_system, start)):
                        frames.append(explored_atoms(system, start, "relaxation", step=step, seed=seed, draw=draw))
                except FAILURES as error:
                    failure = f"{start.source}, relaxed: {type(error).__name__}: {error}"
            yield Walk(frames, failure)

    def simulate(config: ExploreConfig, one: PlannedSimulation, seed: int) -> Walk:
        frames: list[ase.Atoms] = []
        try:
            for step, system in _simulated(make(), config, one, seed):
                frames.append(explored_atoms(system, one.start, "simulation", step=step, **conditions(one), seed=seed))
        except FAILURES as error:
            return Walk(frames, f"{described(one)}: {type(error).__name__}: {error}")
        return Walk(frames)

    return Engine(relax, simulate)


def _relaxed(calculator: Any, config: ExploreConfig, atoms: ase.Atoms) -> Iterator[tuple[int, System]]:
    """(step, structure) after each stage of a relaxation, until it converges."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    atoms.calc = calculator
    with FIRE(FrechetCellFilter(atoms) if config.relax_cell else atoms, logfile=None) as optimizer:
        for steps in stages(config):
            converged = optimizer.run(fmax=RelaxConfig.fmax, steps=steps)
            yield optimizer.nsteps, _checked(atoms)
            if converged:
                return


def _simulated(
    calculator: Any, config: ExploreConfig, one: PlannedSimulation, seed: int
) -> Iterator[tuple[int, System]]:
    """(step, structure) of every `every`-th step."""
    atoms, rng = _atoms(one.start.system, one.start), np.random.default_rng(seed)
    atoms.calc = calculator
    atoms.set_momenta(_thermal(atoms, one.temperature, rng))
    for done in range(1, config.steps + 1):
        _langevin(atoms, config.timestep * units.fs, one.temperature, rng)
        if one.pressure is not None:
            _scale(atoms, config.timestep, one.pressure)
        if done % config.every == 0:
            yield done, _checked(atoms)


def _langevin(atoms: ase.Atoms, step: float, temperature: float, rng: np.random.Generator) -> None:
    """One step of BAOAB (Leimkuhler and Matthews, 10.1093/amrx/abs010); constraints hold what they hold."""
    half, masses = step / 2, atoms.get_masses()[:, None]
    kept = np.exp(-FRICTION / units.fs * step)
    atoms.set_momenta(atoms.get_momenta() + half * atoms.get_forces())
    atoms.set_positions(atoms.positions + half * atoms.get_momenta() / masses)
    drawn = _thermal(atoms, temperature, rng)
    atoms.set_momenta(kept * atoms.get_momenta() + np.sqrt(1 - kept**2) * drawn)
    atoms.set_positions(atoms.positions + half * atoms.get_momenta() / masses)
    atoms.set_momenta(atoms.get_momenta() + half * atoms.get_forces())


def _thermal(atoms: ase.Atoms, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Momenta of Maxwell and Boltzmann's distribution."""
    return np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None] * rng.normal(size=(len(atoms), 3))


def _scale(atoms: ase.Atoms, timestep: float, pressure: float) -> None:
    """The cell and the atoms scaled as Berendsen et al. do (10.1063/1.448118), toward a pressure (GPa)."""
    now = -np.trace(atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa
    volume = 1 - COMPRESSIBILITY * timestep / BAROSTAT * (pressure - now)
    atoms.set_cell(np.clip(volume, *CHANGE) ** (1 / 3) * atoms.cell.array, scale_atoms=True)


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
