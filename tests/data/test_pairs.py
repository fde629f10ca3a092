"""Pairs of start and target from trajectories and from frames that carry their end."""

from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest

from lamjax.data.pairs import pair_batches, pair_capacities, pairs_from_frames, read_pairs
from lamjax.data.read import from_atoms, read
from lamjax.neighbors import Shell

FILE = Path(__file__).parent.parent / "fixtures" / "si_defects" / "sub_B_1.extxyz"
SHELLS = (Shell(4.0), Shell(3.0))


def frames():
    return read(FILE)


def final(positions, number: int = 14):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.numbers[0] = number
    atoms.arrays["final_positions"] = atoms.positions + positions
    return atoms


def test_trajectory_gives_first_and_last_step():
    (pair,) = read_pairs(FILE)
    raw = ase.io.read(FILE, ":")
    np.testing.assert_array_equal(pair.start.positions, raw[0].positions)
    np.testing.assert_array_equal(pair.target.positions, raw[-1].positions)
    np.testing.assert_array_equal(pair.target.numbers, raw[0].numbers)
    assert pair.info["relax_id"] == "001_sub_B_1" and "sub_B_1.extxyz" in pair.source


def test_order_of_the_file_does_not_matter_and_relaxations_may_be_mixed(tmp_path):
    raw = ase.io.read(FILE, ":")
    other = [a.copy() for a in raw]
    for atoms in other:
        atoms.info["relax_id"] = "b"
    ase.io.write(tmp_path / "mixed.extxyz", [raw[3], other[0], raw[0], other[3]])
    first, second = read_pairs([tmp_path / "mixed.extxyz"])
    np.testing.assert_allclose(first.start.positions, raw[0].positions, atol=1e-7)
    np.testing.assert_allclose(second.target.positions, raw[3].positions, atol=1e-7)


def test_final_positions_give_a_pair():
    atoms = final(0.1)
    (pair,) = pairs_from_frames([from_atoms(atoms, source="here")])
    np.testing.assert_allclose(pair.target.positions - pair.start.positions, 0.1)
    assert "final_positions" not in pair.info


def altered(change):
    found = frames()
    found[-1] = change(found[-1])
    return found


def swap(frame):
    return frame._replace(system=frame.system._replace(numbers=frame.system.numbers[::-1]))


def grow(frame):
    return frame._replace(system=frame.system._replace(cell=frame.system.cell * 1.01))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: altered(swap), r"001_sub_B_1 \(sub_B_1.extxyz.*do not hold the same atoms in the same order"),
        (lambda: altered(grow), "relaxes at fixed cell"),
        (lambda: frames()[:1], r"steps 0 to 0 of 17: the start \(step 0\) or its partner.*missing"),
        (lambda: frames()[:-1], r"the relaxed structure \(step 16\), is missing"),
        (lambda: frames()[1:], r"steps 1 to 16 of 17: the start"),
        (lambda: [frames()[0], *frames()], "has a step twice"),
        (lambda: [from_atoms(ase.Atoms("H"), source="x.xyz frame 3")], "x.xyz frame 3: neither an array"),
        (lambda: [from_atoms(final(np.nan), source="y")], "y, final_positions: Position of atom 0 is .*not finite"),
        (lambda: [from_atoms(final(np.eye(8, 3) * -1.3575), source="z")], "z"),
    ],
    ids=["order", "cell", "alone", "no-end", "no-start", "twice", "neither", "nan", "collision"],
)
def test_bad_pairs_are_errors_that_name_them(make, message):
    found = make()
    if message == "z":  # moved, but no two atoms on one place: a valid pair
        assert len(pairs_from_frames(found)) == 1
        return
    with pytest.raises(ValueError, match=message):
        pairs_from_frames(found)


def test_target_that_is_not_relaxed_is_a_warning():
    with pytest.warns(UserWarning, match=r"001_sub_B_1.*last step is not relaxed, its largest force is 0.0353 eV/Å"):
        pairs_from_frames(frames(), fmax=0.03)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.extxyz"):
        read_pairs(tmp_path / "nothing.extxyz")


def test_batches_hold_every_pair_once_in_one_shape():
    pairs = pairs_from_frames([from_atoms(final(0.05 * k, 13 - k)) for k in range(3)]) + read_pairs(FILE)
    batches = list(pair_batches(pairs, SHELLS, batch_size=3, seed=1))
    assert len(batches) == 2
    for batch in batches:
        assert batch.start.positions.shape == batch.target.shape == (3, 32, 3)
        assert batch.neighbors.capacities == pair_capacities(pairs, SHELLS)
        assert not batch.neighbors.overflow.any()
    n_real = [n for b in batches for n in (b.start.numbers > 0).sum(axis=1)]
    assert sorted(n_real) == [0, 0, 8, 8, 8, 32]
    again = list(pair_batches(pairs, SHELLS, batch_size=3, seed=1))
    np.testing.assert_array_equal(again[0].start.numbers, batches[0].start.numbers)
    in_order = next(pair_batches(pairs, SHELLS, batch_size=3))
    np.testing.assert_array_equal(in_order.start.numbers[:, 0], [13, 12, 11])


def test_capacity_has_headroom_for_the_way():
    found = pair_capacities(read_pairs(FILE), SHELLS)
    (pair,) = read_pairs(FILE)
    from_start = next(pair_batches([pair], SHELLS, 1)).neighbors.found[0]
    assert all(width >= 1.25 * f for width, f in zip(found, from_start, strict=True))


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pairs"):
        next(pair_batches([], SHELLS, 1))
