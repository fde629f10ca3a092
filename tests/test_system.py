"""Structures: to and from ASE, padding, strain, and what is refused."""

import ase
import ase.build
import ase.geometry
import jax
import numpy as np
import pytest
import structures
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane

import lamjax
from lamjax import classical, neighbors
from lamjax import system as systems
from lamjax.calculator import Calculator
from lamjax.system import as_jax_casts, host_system


def test_ase_and_back(atoms, dtype):
    system = lamjax.from_ase(atoms, dtype)
    assert system.positions.dtype == dtype and system.cell.dtype == dtype
    assert isinstance(system.positions, jax.Array)
    back = lamjax.to_ase(system)
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    np.testing.assert_array_equal(back.pbc, atoms.pbc)
    tolerance = 0 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(back.positions, atoms.positions, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(back.cell.array, atoms.cell.array, atol=tolerance, rtol=tolerance)


def test_padding_comes_last_and_goes_away(atoms):
    for system in (systems.host_system(atoms), lamjax.from_ase(atoms)):
        padded = systems.pad(system, structures.N_ATOMS + 2)
        assert padded.n_atoms == structures.N_ATOMS + 2 and type(padded.positions) is type(system.positions)
        assert list(np.asarray(systems.real(padded))) == [True] * len(atoms) + [False] * (padded.n_atoms - len(atoms))
        np.testing.assert_array_equal(lamjax.to_ase(padded).positions, atoms.positions)


def test_padding_labels(rng):
    labels = systems.Labels(np.float64(1), rng.normal(size=(3, 3)), rng.normal(size=(3, 3)), np.ones(3))
    padded = systems.pad_labels(labels, 5)
    np.testing.assert_array_equal(padded.forces, [*labels.forces, np.zeros(3), np.zeros(3)])
    np.testing.assert_array_equal(padded.virial, labels.virial)


@pytest.mark.parametrize("given", [np.int64, np.float64])  # a temperature may be an integer
@pytest.mark.parametrize("width", [1, 2, 5])
def test_frame_and_atomic_parameters_come_along(given, width, dtype):
    atoms = structures.molecule()
    frame, each = np.arange(1, width + 1, dtype=given), np.arange(len(atoms) * width, dtype=given).reshape(-1, width)
    atoms.info["fparam"], atoms.arrays["aparam"] = frame, each
    for system in (systems.host_system(atoms, dtype), lamjax.from_ase(atoms, dtype)):
        assert system.fparam.dtype == system.aparam.dtype == dtype
        padded = systems.pad(system, len(atoms) + 2)
        np.testing.assert_array_equal(padded.fparam, frame)
        np.testing.assert_array_equal(padded.aparam, [*each, np.zeros(width), np.zeros(width)])
        back = lamjax.to_ase(padded)
        np.testing.assert_array_equal(back.info["fparam"], frame)
        np.testing.assert_array_equal(back.arrays["aparam"], each)
    assert lamjax.from_ase(atoms).fparam.dtype == lamjax.from_ase(atoms).positions.dtype == jax.numpy.zeros(1).dtype


def test_a_single_frame_parameter_may_be_a_number():
    atoms = structures.molecule()
    atoms.info["fparam"] = 300
    np.testing.assert_array_equal(lamjax.from_ase(atoms).fparam, [300.0])


@pytest.mark.parametrize(("name", "where"), [("fparam", "info"), ("aparam", "arrays")])
def test_parameters_that_are_not_finite_are_refused(name, where):
    atoms = structures.molecule()
    getattr(atoms, where)[name] = np.full((len(atoms), 2), np.nan)
    with pytest.raises(ValueError, match=f"{name} holds a value that is not finite"):
        lamjax.from_ase(atoms)


def test_a_bucket_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"4 atoms, the bucket 3\. Choose n_atoms >= 4"):
        systems.pad(systems.host_system(structures.molecule()), 3)


def test_strain_is_that_of_ase(rng):
    atoms, epsilon = structures.triclinic(), 0.01 * rng.normal(size=(3, 3))
    strained = systems.strain(lamjax.from_ase(atoms), epsilon)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + (epsilon + epsilon.T) / 2), scale_atoms=True)
    np.testing.assert_allclose(strained.cell, atoms.cell.array, rtol=1e-13)
    np.testing.assert_allclose(strained.positions, atoms.positions, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(systems.volume(strained), atoms.get_volume(), rtol=1e-12)


def test_fixed_components_are_those_that_ase_holds():
    atoms = structures.triclinic()
    held = [FixAtoms([1, 3]), FixCartesian([0, 3], (True, False, True)), FixCartesian(2, (False, True, False))]
    atoms.set_constraint(held)
    fixed = systems.fixed_components(atoms)
    free = np.ones((len(atoms), 3))
    for constraint in held:
        constraint.adjust_forces(atoms, free)
    np.testing.assert_array_equal(fixed, free == 0)
    again = atoms.copy()
    again.set_constraint(systems.constraints(fixed))
    np.testing.assert_array_equal(systems.fixed_components(again), fixed)
    assert [type(c) for c in again.constraints] == [FixAtoms, FixCartesian, FixCartesian]
    assert systems.constraints(np.zeros((5, 3), bool)) == []


def test_other_constraints_are_named():
    atoms = structures.triclinic()
    atoms.set_constraint([FixAtoms([0]), FixBondLength(1, 2), FixBondLength(3, 4), FixedPlane(2, (0, 0, 1))])
    assert systems.other_constraints(atoms) == ("FixBondLengths", "FixedPlane")


def refused():
    flat = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])
    return {
        "no atoms": ase.Atoms(),
        "Position of atom 1": ase.Atoms("HH", positions=[(0, 0, 0), (np.nan, 0, 0)]),
        "cell holds": ase.Atoms("H", cell=[np.inf, 1, 1]),
        "Atom 0 has atomic number 0": ase.Atoms("X"),
        "lattice vector 2 is zero": ase.Atoms("H", cell=[3, 3, 0], pbc=True),
        "linearly dependent": ase.Atoms("H", cell=flat, pbc=True),
    }


@pytest.mark.parametrize("message", refused())
def test_what_cannot_be_computed_is_refused(message):
    with pytest.raises(ValueError, match=message):
        lamjax.from_ase(refused()[message])


def test_a_batch_is_no_single_structure():
    batch = jax.tree.map(lambda x: x[None], lamjax.from_ase(structures.copper()))
    with pytest.raises(ValueError, match="one structure"):
        lamjax.to_ase(batch)


def test_several_structures_are_refused_where_one_is_meant(atoms):
    system = systems.host_system(atoms)
    several = system._replace(structure=np.zeros(len(atoms), np.int32), cell=system.cell[None], pbc=system.pbc[None])
    shells = (neighbors.Shell(3.0),)
    for use in (
        lamjax.to_ase,
        lambda s: neighbors.allocate(s, shells),
        lambda s: neighbors.count(s, shells),
        lambda s: neighbors.all_images(s, shells, (4,), np.zeros((1, 3), np.int32)),
    ):
        with pytest.raises(ValueError, match="takes one structure, got several"):
            use(several)


def wandering(rng, cells: int) -> tuple[ase.Atoms, ase.Atoms]:
    """A slab, periodic in two directions, and the same with its atoms moved by up to `cells` lattice vectors."""
    atoms = ase.build.fcc100("Cu", (2, 2, 3), vacuum=6.0)
    atoms.rattle(0.05, rng=rng)
    atoms.wrap()
    far = atoms.copy()
    steps = rng.integers(-cells, cells + 1, (len(atoms), 3)) * atoms.pbc
    far.positions += steps @ atoms.cell.array
    return atoms, far


@pytest.mark.parametrize("cells", [20, 2000])
def test_atoms_come_home_before_float32(rng, cells):
    home, far = wandering(rng, cells)
    assert not far.pbc[2] and np.abs(far.positions[:, :2]).max() > 50
    system = host_system(far, np.float32)
    np.testing.assert_allclose(system.positions[:, 2], home.positions[:, 2], atol=1e-5)  # not periodic: not moved
    d = ase.geometry.find_mic(system.positions - home.positions, home.cell, home.pbc)[1]
    assert d.max() < 2e-6
    assert np.abs(system.positions).max() < 40
    np.testing.assert_array_equal(host_system(far).positions, far.positions)  # float64 has digits enough


def test_energy_and_forces_of_an_unwrapped_trajectory_in_float32(rng):
    """As those of the same crystal at home, through everything that makes float32 of positions."""
    home, far = wandering(rng, 1500)
    potential = classical.lennard_jones(sigma=2.2, epsilon=0.1, cutoff=4.0)
    params = potential.init(jax.random.key(0), np.float32)
    exact = Calculator((potential, params), dtype="float64")
    home.calc = exact
    forces = home.get_forces()
    far.calc = Calculator((potential, params), dtype="float32")
    np.testing.assert_allclose(far.get_forces(), forces, atol=2e-5)
    system = lamjax.from_ase(far, np.float32)
    prediction = lamjax.predict(potential, params, system, lamjax.allocate(potential, system))
    np.testing.assert_allclose(prediction.forces, forces, atol=2e-5)


def test_positions_that_jax_would_round_are_told(rng):
    """Of a System from elsewhere than `from_ase`, given where x64 is off."""
    home, far = wandering(rng, 1500)
    potential = classical.lennard_jones(sigma=2.2, epsilon=0.1, cutoff=4.0)
    with jax.enable_x64(False):
        for dtype in (np.float64, np.float32):
            system = host_system(far)._replace(positions=far.positions.astype(dtype))
            with pytest.warns(
                UserWarning, match="lattice vectors away from the home cell.*rounded to 0.000.*as_jax_cas"
            ):
                lamjax.allocate(potential, system)
        lamjax.allocate(potential, as_jax_casts(host_system(far)))  # not a word
        lamjax.allocate(potential, host_system(home))
    lamjax.allocate(potential, host_system(far))


def test_molecules_that_wandered_stay_whole():
    """All atoms are moved by the same, so that a molecule across a face is not torn."""
    molecule = ase.Atoms("CO", [(9.6, 1, 1), (10.7, 1, 1)], cell=[10, 10, 10], pbc=True)
    for shift in ((0, 0, 0), (3, -2, 0), (500, -700, 33)):
        atoms = molecule.copy()
        atoms.positions += np.array(shift) @ atoms.cell.array
        system = host_system(atoms, np.float32).positions
        np.testing.assert_allclose(system[1] - system[0], (1.1, 0, 0), atol=1e-5)
        assert np.abs(system).max() < 50


def test_a_prediction_becomes_the_results_of_a_single_point_calculation():
    atoms = ase.build.bulk("Cu", cubic=True)
    system = lamjax.from_ase(atoms)
    values = np.arange(12.0).reshape(4, 3), np.diag([1.0, 2.0, 3.0]), np.arange(4.0)
    prediction = lamjax.Prediction(np.float64(-3.0), *values)
    padded = systems.pad(system, 6)
    wider = prediction._replace(
        forces=np.concatenate([values[0], np.ones((2, 3))]), atomic_energies=np.append(values[2], [7.0, 8.0])
    )
    for result in (lamjax.to_ase(system, prediction), lamjax.to_ase(padded, wider)):
        assert result.get_potential_energy() == -3 and len(result) == 4
        np.testing.assert_array_equal(result.get_forces(), values[0])
        np.testing.assert_array_equal(result.get_potential_energies(), values[2])
        np.testing.assert_allclose(result.get_stress(voigt=False), -values[1] / atoms.get_volume())
    atoms.pbc = False
    assert "stress" not in lamjax.to_ase(lamjax.from_ase(atoms), prediction).calc.results
