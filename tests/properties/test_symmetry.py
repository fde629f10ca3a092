"""Point groups are counted right: of lattices of textbooks, and where an atom or a strain breaks them."""

import ase
import ase.build
import numpy as np
import pytest

import lamjax
from lamjax.properties import n_operations


@pytest.mark.parametrize(
    ("atoms", "order"),
    [
        (ase.build.bulk("Cu", "fcc", a=3.6), 48),
        (ase.build.bulk("Cu", "fcc", a=3.6, cubic=True), 48),
        (ase.build.bulk("Si", "diamond", a=5.43), 48),
        (ase.build.bulk("GaAs", "zincblende", a=5.65), 24),
        (ase.build.bulk("Mg", "hcp", a=3.2, c=5.2), 24),
        (ase.build.bulk("Cu", "bct", a=3.0, c=4.0), 16),
    ],
)
def test_orders_of_point_groups(atoms, order):
    assert n_operations(lamjax.from_ase(atoms)) == order
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn, scale_atoms=True)
    turned.positions += (0.3, 0.1, -0.7)
    assert n_operations(lamjax.from_ase(turned)) == order


def test_a_moved_atom_and_a_strain_break_it():
    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True)
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array * [1, 1, 1.05], scale_atoms=True)
    assert n_operations(lamjax.from_ase(strained)) == 16
    atoms.positions[0] += (0.2, 0, 0)
    assert n_operations(lamjax.from_ase(atoms)) < 8
    molecule = ase.build.molecule("H2O")
    assert n_operations(lamjax.from_ase(molecule)) is None
