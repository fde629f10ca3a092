"""Electronic configurations against DeePMD-kit's table and against what is known of atoms."""

from pathlib import Path

import ase.data
import numpy as np
import pytest

from lamjax.descriptors.electrons import N_SPIN_ORBITALS, configuration, spin_orbitals

SYMBOLS = tuple(ase.data.chemical_symbols[1:])
TABLE = Path(__file__).parents[1] / "fixtures/electrons/occupied.npy"


def test_table_is_deepmds():
    occupied = np.unpackbits(np.load(TABLE))[: 118 * 118].reshape(118, 118).astype(bool)
    ours = spin_orbitals(SYMBOLS)
    np.testing.assert_array_equal(ours > 0, occupied)
    np.testing.assert_array_equal(np.abs(ours), 1 / np.sqrt(N_SPIN_ORBITALS))


def test_atoms_are_neutral():
    assert [sum(configuration(s).values()) for s in SYMBOLS] == list(range(1, 119))


@pytest.mark.parametrize(
    ("symbol", "valence"),
    [
        ("Cr", {"4s": 1, "3d": 5}),
        ("Pd", {"4d": 10}),
        ("Gd", {"6s": 2, "4f": 7, "5d": 1}),
        ("Pt", {"6s": 1, "5d": 9}),
        ("U", {"7s": 2, "5f": 3, "6d": 1}),
        ("Og", {"7s": 2, "7p": 6}),
    ],
)
def test_ground_states_of_the_handbook(symbol, valence):
    result = configuration(symbol)
    assert {name: result.get(name, 0) for name in valence} == valence
    assert "5s" not in configuration("Pd")


def test_ground_state_multiplicity_follows_hund():
    """Unpaired electrons: N 3, O 2, Cr 6, Gd 8."""
    for symbol, unpaired in (("N", 3), ("O", 2), ("Cr", 6), ("Gd", 8), ("Ne", 0)):
        pairs = (spin_orbitals((symbol,))[0] > 0).reshape(-1, 2)
        assert int(np.sum(pairs[:, 0] != pairs[:, 1])) == unpaired
