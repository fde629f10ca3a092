"""Where a student goes: perturbations by hand, simulations that end well and that explode."""

import dataclasses

import ase
import ase.build
import jax
import numpy as np
import pytest
import structures
from ase.constraints import FixAtoms

from lamjax import classical
from lamjax.data import from_atoms
from lamjax.distillation import ExploreConfig
from lamjax.distillation import exploration as exploring

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)
MILD = ExploreConfig(temperatures=(300.0,), timestep=2.0, steps=20, every=5, perturbed=2, relaxations=1, relax_steps=3)


def start(atoms: ase.Atoms):
    return from_atoms(atoms, source="here")


def copper() -> ase.Atoms:
    return ase.build.bulk("Cu", cubic=True)


def test_perturbations_have_the_size_that_is_asked_for(rng):
    large = start(copper() * (5, 5, 5))
    moved = exploring.perturbed(large, rng, 0.1, 0.0)
    np.testing.assert_allclose(np.std(moved.positions - large.system.positions), 0.1, rtol=0.05)
    np.testing.assert_array_equal(moved.cell, large.system.cell)
    strains = [exploring.perturbed(start(copper()), rng, 0.0, 0.02) for _ in range(300)]
    f = np.array([np.linalg.solve(large.system.cell / 5, one.cell) - np.eye(3) for one in strains])
    np.testing.assert_allclose(f, f.transpose(0, 2, 1), atol=1e-12)  # no rotation
    np.testing.assert_allclose(np.std(f[:, 0, 0]), 0.02, rtol=0.15)
    one = strains[0]  # atoms go with the cell
    scaled = [x.positions @ np.linalg.inv(x.cell) for x in (one, start(copper()).system)]
    np.testing.assert_allclose(*scaled, atol=1e-12)


@pytest.mark.parametrize("name", ["slab", "wire", "molecule"])
def test_strain_stays_within_the_periodic_directions(name, rng):
    here = start(structures.ALL[name]())
    change = exploring.perturbed(here, rng, 0.0, 0.1)
    d = change.positions - here.system.positions
    cell = here.system.cell[here.system.pbc]
    outside = np.eye(3) - np.linalg.pinv(cell) @ cell if len(cell) else np.eye(3)
    np.testing.assert_allclose(d @ outside, 0, atol=1e-12)
    assert (np.abs(d).max() > 1e-3) == bool(here.system.pbc.any())


def test_fixed_atoms_stay(rng):
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 2]))
    here = start(atoms)
    moved = exploring.perturbed(here, rng, 0.1, 0.1)
    way = np.linalg.norm(moved.positions - here.system.positions, axis=1)
    assert (way[[0, 2]] == 0).all() and (way[[1, 3]] > 0).all()
    np.testing.assert_array_equal(moved.cell, here.system.cell)


def test_a_round_of_exploration_says_where_its_frames_come_from():
    walks = list(exploring.explore(MILD, MORSE, MORSE.init(), [start(copper())], seed=1))
    assert len(walks) == exploring.n_walks(MILD, 1) == 3
    assert [walk.failure for walk in walks] == [None] * 3
    perturbed, relaxed, simulated = (walk.frames for walk in walks)
    assert [len(frames) for frames in (perturbed, relaxed, simulated)] == [2, 1, 4]
    assert [a.info["step"] for a in simulated] == [5, 10, 15, 20] and simulated[0].info["temperature"] == 300
    assert {a.info["origin"] for a in perturbed + relaxed + simulated} == {"perturbation", "relaxation", "simulation"}
    assert {a.info["start"] for a in perturbed + relaxed + simulated} == {"here"}
    again = list(exploring.explore(MILD, MORSE, MORSE.init(), [start(copper())], seed=1))
    for a, b in zip(walks[2].frames, again[2].frames, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)


def test_at_a_pressure_the_cell_moves():
    one = exploring.PlannedSimulation(start(copper()), 300.0, 30.0)
    walk = exploring.simulate(MILD, MORSE, MORSE.init(), one, seed=0)
    assert walk.failure is None and walk.frames[-1].info["pressure"] == 30
    assert abs(walk.frames[-1].get_volume() / copper().get_volume() - 1) > 0.01


def test_an_explosion_keeps_what_was_before_and_says_why():
    fierce = dataclasses.replace(MILD, every=1)
    hard = MORSE.init() | {"depth": 300.0}  # the same program as that of the test above
    one = exploring.PlannedSimulation(start(copper()), 300.0, None)
    walk = exploring.simulate(fierce, MORSE, hard, one, seed=0)
    assert "here at 300 K" in walk.failure and "time step" in walk.failure
    assert 0 < len(walk.frames) < 20 and all(np.isfinite(a.positions).all() for a in walk.frames)


def test_a_student_that_knows_nothing_does_not_end_the_round():
    broken = jax.tree.map(lambda x: x * np.nan, MORSE.init())
    one = exploring.PlannedSimulation(start(copper()), 300.0, None)
    walk = exploring.simulate(MILD, MORSE, broken, one, seed=0)
    assert walk.frames == [] and "NaN" in walk.failure


def test_so_many_simulations_are_drawn():
    config = ExploreConfig(temperatures=(100.0, 200.0), pressures=(0.0, 1.0), simulations=3)
    starts = [start(copper()), start(copper() * (2, 1, 1))]
    drawn = [exploring.simulations(config, starts, seed) for seed in range(5)]
    assert all(len(some) == 3 for some in drawn)
    assert len({(one.temperature, one.pressure, one.start.system.n_atoms) for some in drawn for one in some}) > 3
    whole = ExploreConfig(temperatures=(100.0, 200.0), pressures=(0.0, 1.0))
    assert len(exploring.simulations(whole, starts, 0)) == 8 and exploring.n_walks(whole, 2) == 10
