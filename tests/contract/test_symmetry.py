"""What leaves the energy of any potential unchanged, or turns its forces."""

import ase
import ase.build
import numpy as np
import potentials
import pytest
import structures

RTOL = 1e-11


def assert_close(got, expected, scale=None):
    """Equal within RTOL of the largest component (of `scale` where the expected values vanish)."""
    largest = max(np.abs(expected).max(), np.abs(scale).max() if scale is not None else 1e-3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=RTOL * largest)


def rotation(rng) -> np.ndarray:
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def test_permutation(case, atoms, rng):
    order = rng.permutation(len(atoms))
    if case.first_atom_counts:  # its type stands in for empty slots
        order = np.concatenate([[0], 1 + rng.permutation(len(atoms) - 1)]).astype(int)
    expected, got = potentials.evaluate(case, atoms), potentials.evaluate(case, atoms[order])
    assert_close(got.energy, expected.energy)
    assert_close(got.forces, expected.forces[order])
    assert_close(got.virial, expected.virial)
    assert_close(got.atomic_energies, expected.atomic_energies[order])


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_reflection(case, atoms, rng, mirrored):
    turn = rotation(rng) * (-1 if mirrored else 1)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn)
    turned.positions = atoms.positions @ turn
    expected, got = potentials.evaluate(case, atoms), potentials.evaluate(case, turned)
    assert_close(got.energy, expected.energy)
    assert_close(got.forces, expected.forces @ turn)
    assert_close(got.virial, turn.T @ expected.virial @ turn)


def test_translation_of_everything(case, atoms):
    moved = atoms.copy()
    moved.positions += (0.37, -11.2, 5.1)
    expected, got = potentials.evaluate(case, atoms), potentials.evaluate(case, moved)
    assert_close(got.energy, expected.energy)
    assert_close(got.forces, expected.forces)
    assert_close(got.virial, expected.virial)


def test_translation_of_single_atoms_by_lattice_vectors(case):
    expected = potentials.evaluate(case, structures.triclinic())
    got = potentials.evaluate(case, structures.unwrapped())
    assert_close(got.energy, expected.energy)
    assert_close(got.forces, expected.forces)
    assert_close(got.virial, expected.virial)


def test_another_choice_of_cell_for_the_same_lattice(case):
    atoms = structures.triclinic()
    other = atoms.copy()
    other.set_cell(np.array([[1, 1, 0], [0, 1, 0], [0, -1, -1]]) @ atoms.cell.array)  # left-handed, too
    expected, got = potentials.evaluate(case, atoms), potentials.evaluate(case, other)
    assert_close(got.energy, expected.energy)
    assert_close(got.forces, expected.forces)
    assert_close(got.virial, expected.virial)


@pytest.mark.parametrize(
    ("name", "repeat"), [("copper", (2, 2, 2)), ("wire", (2, 1, 1)), ("copper_and_oxygen", (1, 2, 2))]
)
def test_a_supercell_has_more_of_the_same(case, name, repeat):
    if name == "copper_and_oxygen":
        atoms = structures.copper() + ase.Atoms("O", positions=[(1.5, 1.9, 1.6)])
    else:
        atoms = structures.ALL[name]()
    n = int(np.prod(repeat))
    one, many = potentials.evaluate(case, atoms), potentials.evaluate(case, atoms.repeat(repeat))
    assert_close(many.energy, n * one.energy)
    assert_close(many.forces, np.tile(one.forces, (n, 1)), scale=n * one.virial)
    assert_close(many.virial, n * one.virial)


def test_forces_of_a_structure_sum_to_zero(case, atoms):
    forces = potentials.evaluate(case, atoms).forces
    assert np.abs(forces.sum(axis=0)).max() < 1e-12 * max(1, np.abs(forces).max())


def test_no_torque_on_a_molecule(case):
    atoms = structures.molecule()
    forces = potentials.evaluate(case, atoms).forces
    assert np.abs(forces).max() > 1e-3
    assert np.abs(np.cross(atoms.positions, forces).sum(axis=0)).max() < 1e-11 * np.abs(forces).max()


def test_the_virial_is_symmetric(case, atoms):
    virial = potentials.evaluate(case, atoms).virial
    assert_close(virial, virial.T)
