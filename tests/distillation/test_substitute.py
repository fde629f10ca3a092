"""Substitutions: who is similar to whom, how sizes follow, and that a seed makes them again."""

import ase.build
import ase.data
import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from lamjax.data import from_atoms
from lamjax.distillation import substitute
from lamjax.distillation.substitute import USUAL, similar, substitutes


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("Na", "Li K"), ("O", "S"), ("S", "O Se"), ("Si", "C Ge"), ("Cl", "F Br"), ("Fe", "Mn Co Ru"),
        ("Zr", "Ti Y Nb Hf"), ("Eu", "Sm Gd"), ("Ba", "Sr"), ("H", ""), ("Zn", "Cu Cd"),
    ],
)  # fmt: skip
def test_neighbours_in_group_and_row(symbol, expected):
    assert set(similar(symbol)) == set(expected.split())


def test_similarity_is_mutual_and_stays_among_the_allowed():
    for symbol in USUAL:
        assert all(symbol in similar(other) for other in similar(symbol)) and symbol not in similar(symbol)
    assert similar("Na", ("K", "Rb", "Cl")) == ("K",) and similar("Na", places=2) == ("Li", "K", "Rb")
    assert len(USUAL) == 89


# lattice constants (Å) of measured crystals, room temperature
KNOWN = [
    ("rocksalt", "NaCl", 5.640, "KCl", 6.293), ("rocksalt", "NaCl", 5.640, "NaBr", 5.973),
    ("diamond", "Si", 5.431, "Ge", 5.658), ("zincblende", "ZnS", 5.409, "CdS", 5.832),
    ("fcc", "Cu", 3.615, "Ag", 4.085), ("rocksalt", "MgO", 4.212, "CaO", 4.811), ("fcc", "Ni", 3.524, "Pd", 3.891),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "old", "a", "new", "b"), KNOWN, ids=[f"{one[1]}-{one[3]}" for one in KNOWN])
def test_lattice_constants_follow_the_radii(kind, old, a, new, b):
    numbers = ase.build.bulk(new, kind, a=b).numbers
    scale = substitute.stretch(from_atoms(ase.build.bulk(old, kind, a=a)).system, numbers)
    assert abs(a * scale / b - 1) < min(0.05, abs(a / b - 1))  # nearer than without


def test_the_stretch_is_that_of_nearest_neighbours():
    atoms = ase.build.molecule("CH3CH2OH")
    numbers = np.where(atoms.numbers == 8, 16, atoms.numbers)
    i, j, d = neighbor_list("ijd", atoms, 3.0)
    nearest = [j[i == k][np.argmin(d[i == k])] for k in range(len(atoms))]
    radii = ase.data.covalent_radii
    sums = [sum(radii[z[k]] + radii[z[nearest[k]]] for k in range(len(atoms))) for z in (numbers, atoms.numbers)]
    np.testing.assert_allclose(substitute.stretch(from_atoms(atoms).system, numbers), sums[0] / sums[1], rtol=1e-12)
    assert substitute.stretch(from_atoms(ase.Atoms("Na")).system, np.array([19])) == 1


def test_substitutions_are_new_compositions_of_the_same_structure():
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    atoms.info["REF_energy"] = -3.0
    start = from_atoms(atoms, source="salt frame 0")
    substitutions = substitutes([start], 6, seed=3)
    assert len({one.source for one in substitutions}) == 6
    for one in substitutions:
        assert one.system.numbers.tolist() != [11, 17] and one.labels.weights.tolist() == [0, 0, 0]
        fractions = [x.positions @ np.linalg.inv(x.cell) for x in (one.system, start.system)]
        np.testing.assert_allclose(*fractions, atol=1e-12)
        assert one.source == f"salt frame 0, {one.info['substituted']}" and one.info["seed"] == 3
    again = substitutes([start], 6, seed=3)
    assert [one.source for one in again] == [one.source for one in substitutions]
    assert {one.source for one in substitutes([start], 6, seed=4)} != {one.source for one in substitutions}


def test_what_cannot_be_substituted_is_left():
    fixed = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    fixed.set_constraint(FixAtoms([0]))
    assert substitutes([from_atoms(fixed)], 3, seed=0) == []
    assert substitutes([from_atoms(ase.build.molecule("H2"))], 3, seed=0) == []
    salt = from_atoms(ase.build.bulk("NaCl", "rocksalt", a=5.64))
    assert {one.info["substituted"] for one in substitutes([salt], 3, 0, ["Na", "Cl", "K"])} == {"Na->K"}


def test_no_two_sites_become_one_element():
    mixed = from_atoms(ase.build.bulk("GaAs", "zincblende", a=5.65))
    for seed in range(20):
        for one in substitutes([mixed], 4, seed, places=4):
            assert len(set(one.system.numbers.tolist())) == 2
