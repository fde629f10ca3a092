"""Lennard-Jones and Morse against ASE's own implementations and against formulas."""

import functools

import ase.build
import ase.calculators.lj
import ase.calculators.morse
import ase.neighborlist
import jax
import numpy as np
import pytest

import lamjax
from lamjax import classical
from lamjax.system import host_system

# Between the fourth and the fifth shell of fcc neighbours nothing is switched, so both codes have the same energy
A, START, CUTOFF = 5.3, 7.85, 8.05


def crystal(rng):
    """Sheared, shaken argon without a distance between START and CUTOFF."""
    atoms = ase.build.bulk("Ar", "fcc", a=A, cubic=True)
    shear = np.eye(3) + 0.003 * np.array([[1, 2, -1], [0, -1, 3], [0, 0, 2]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.positions += rng.uniform(-0.03, 0.03, atoms.positions.shape)
    distances = ase.neighborlist.neighbor_list("d", atoms, 9.0)
    assert not np.any((distances > START) & (distances < CUTOFF)) and np.any(distances > CUTOFF)
    return atoms, int(np.sum(distances < CUTOFF)) // 2


def predict(potential, atoms):
    system = host_system(atoms)
    compute = jax.jit(functools.partial(lamjax.predict, potential))
    prediction = compute(potential.init(), system, lamjax.allocate(potential, system))
    return prediction, np.asarray(lamjax.stress(prediction, system))


def assert_same(atoms, prediction, stress, energy_shift):
    """Energy, forces, stress (sign and Voigt order) equal ASE's to 1e-10 of the largest component."""
    np.testing.assert_allclose(prediction.energy, atoms.get_potential_energy() + energy_shift, rtol=1e-11)
    for got, expected in ((prediction.forces, atoms.get_forces()), (stress, atoms.get_stress())):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert len(set(np.round(stress, 8))) == 6  # six different numbers: a wrong order shows


def test_lennard_jones_is_that_of_ase(rng):
    atoms, n_pairs = crystal(rng)
    sigma, epsilon = 3.4, 0.0104
    potential = classical.lennard_jones(sigma, epsilon, CUTOFF, START)
    atoms.calc = ase.calculators.lj.LennardJones(sigma=sigma, epsilon=epsilon, rc=CUTOFF)
    x = (sigma / CUTOFF) ** 6  # ASE shifts the energy of a pair to zero at the cutoff
    assert_same(atoms, *predict(potential, atoms), energy_shift=n_pairs * 4 * epsilon * (x * x - x))


def test_morse_is_that_of_ase(rng):
    atoms, _ = crystal(rng)
    depth, width, distance = 0.02, 1.1, 3.8
    potential = classical.morse(depth, width, distance, CUTOFF, START)
    atoms.calc = ase.calculators.morse.MorsePotential(
        epsilon=depth, rho0=width * distance, r0=distance, rcut1=START / distance, rcut2=CUTOFF / distance
    )
    assert_same(atoms, *predict(potential, atoms), energy_shift=0)


@pytest.mark.parametrize("r", [0.9, 1.3, 1.9])
def test_a_pair_has_the_energy_of_the_formula(r):
    atoms = ase.Atoms("Ar2", positions=[(0, 0, 0), (0, 0, r)])
    lj, _ = predict(classical.lennard_jones(), atoms)
    np.testing.assert_allclose(lj.energy, 4 * (r**-12 - r**-6), rtol=1e-13)
    np.testing.assert_allclose(lj.forces[1, 2], 4 * (12 * r**-13 - 6 * r**-7), rtol=1e-12)
    morse, _ = predict(classical.morse(), atoms)
    np.testing.assert_allclose(morse.energy, np.exp(-10 * (r - 1)) - 2 * np.exp(-5 * (r - 1)), rtol=1e-12)


def test_nothing_is_left_at_the_cutoff():
    atoms = ase.Atoms("Ar2", positions=[(0, 0, 0), (0, 0, 2.4999)])
    for potential in (classical.lennard_jones(), classical.morse()):
        assert abs(predict(potential, atoms)[0].energy) < 1e-11


def test_a_potential_of_ones_own():
    """Any function of the distance becomes a potential; the same function and numbers give the same one."""

    def spring(params, r):
        return params["k"] * (r - 1) ** 2 / 2

    potential = classical.pair_potential(spring, {"k": 3.0}, cutoff=2.5)
    assert potential is classical.pair_potential(spring, {"k": 3.0}, cutoff=2.5)
    assert potential is not classical.pair_potential(spring, {"k": 4.0}, cutoff=2.5)
    prediction, _ = predict(potential, ase.Atoms("H2", positions=[(0, 0, 0), (1.2, 0, 0)]))
    np.testing.assert_allclose(prediction.forces[:, 0], [0.6, -0.6], rtol=1e-12)
