"""Laws of mechanics for a trained DPA-2 on real water and on a crystal, in float64. Slow."""

import functools
from pathlib import Path

import ase
import ase.build
import ase.md.verlet
import numpy as np
import pytest

import lamjax
from lamjax import dynamics, units

ROOT = Path(__file__).parents[2]
FRAME = ROOT / "tests" / "fixtures" / "multitask" / "single_water_reference.npz"
WATER_MODEL = ROOT / "experiments" / "distillation" / "teacher_water.lamjax"  # fine-tuned on PBE0+TS
CRYSTAL_MODEL = ROOT / "lamjax" / "assets" / "demo" / "base.lamjax"  # pre-trained on PBE crystals
pytestmark = pytest.mark.slow


@functools.cache
def water() -> tuple:
    """DPA-2 that was fine-tuned on water, and a frame of 64 molecules."""
    potential, params = lamjax.load(WATER_MODEL, dtype=np.float64)
    with np.load(FRAME) as stored:
        numbers, positions, cell = (stored[f"water192__{key}"] for key in ("species", "positions", "cell"))
    return potential, params, ase.Atoms(list(map(str, numbers)), positions, cell=cell, pbc=True)


@functools.cache
def silicon() -> tuple:
    """DPA-2 of 23 elements, and silicon in 8 atoms: a cell smaller than its cutoff."""
    potential, params = lamjax.edit.restrict_elements(*lamjax.load(CRYSTAL_MODEL, dtype=np.float64), ["Si"])
    return potential, params, ase.build.bulk("Si", cubic=True)


def records(ensemble, params, simulation, n_steps: int, every: int):
    ends, parts = zip(*dynamics.simulate(ensemble, params, simulation, n_steps, every), strict=True)
    return ends[-1], dynamics.Record(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@pytest.mark.parametrize(("case", "kelvin"), [(water, 330), (silicon, 600)])
def test_energy_does_not_drift(case, kelvin):
    """Below 1e-5 eV/atom/ps at 0.25 fs: the slope of a line through a picosecond, over which it is known to 2e-6."""
    potential, params, atoms = case()
    ensemble = dynamics.nve(potential, dynamics.NVEConfig(timestep=0.25))
    simulation = dynamics.begin(ensemble, params, lamjax.from_ase(atoms), temperature=kelvin)
    _, seen = records(ensemble, params, simulation, 4000, every=10)
    energy = seen.conserved / len(atoms)
    picoseconds = seen.step * 0.25e-3
    assert abs(np.polyfit(picoseconds, energy, 1)[0]) < 1e-5
    np.testing.assert_allclose(seen.momenta.sum(axis=1), 0, atol=1e-9)
    assert np.ptp(seen.potential_energy) / len(atoms) > 1e-3  # it moved


@pytest.mark.parametrize(("case", "kelvin"), [(water, 330), (silicon, 600)])
def test_the_trajectory_is_that_of_ase(case, kelvin):
    """100 steps of ASE's velocity Verlet with the calculator, to 1e-8 Å."""
    potential, params, atoms = case()
    atoms = atoms.copy()
    ensemble = dynamics.nve(potential, dynamics.NVEConfig(timestep=0.5))
    simulation = dynamics.begin(ensemble, params, lamjax.from_ase(atoms), temperature=kelvin, seed=3)
    atoms.set_momenta(np.asarray(simulation.state.momentum))
    _, seen = records(ensemble, params, simulation, 100, every=100)
    atoms.calc = lamjax.Calculator((potential, params))
    ase.md.verlet.VelocityVerlet(atoms, timestep=float(np.float32(0.5 * units.FS))).run(100)
    np.testing.assert_allclose(seen.positions[-1], atoms.positions, atol=1e-8)


def test_a_crystal_has_the_volume_of_its_equation_of_state():
    """At 20 K, against the relaxed cell at that pressure, to 0.5 %."""
    potential, params, atoms = silicon()
    pressure = 2 * units.GPA
    system = lamjax.from_ase(atoms)
    config = lamjax.relaxation.RelaxConfig(fmax=1e-3, max_steps=500, cell=lamjax.relaxation.CellConfig(pressure))
    (relaxed,) = lamjax.relaxation.relax_structures(potential, params, [system], config)
    assert relaxed.converged
    expected = float(lamjax.system.volume(relaxed.system))
    config = dynamics.NPTConfig(2.0, 20.0, pressure, thermostat_time=60.0, barostat_time=150.0)
    ensemble = dynamics.npt(potential, config)
    simulation = dynamics.begin(ensemble, params, system)
    simulation, _ = records(ensemble, params, simulation, 400, every=100)
    _, seen = records(ensemble, params, simulation, 800, every=5)
    assert np.mean(seen.volume) == pytest.approx(expected, rel=0.005)
    assert np.mean(seen.pressure) == pytest.approx(pressure, abs=0.3 * units.GPA)
