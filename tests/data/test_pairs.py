"""Pairs of start and target from files: three forms, fixed and variable cells, fixed atoms; what is wrong is named."""

import warnings
from itertools import permutations
from pathlib import Path

import ase
import ase.build
import ase.geometry
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from lamjax import lattice, system
from lamjax.data import matching
from lamjax.data.pairs import pairs_from_frames, read_pairs
from lamjax.data.reading import from_atoms, read

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILE = FIXTURES / "si_defects" / "sub_B_1.extxyz"
VARIABLE = FIXTURES / "mgypo4" / "relaxations.extxyz"


def frames():
    return read(FILE)


def silicon(numbers=(14,) * 8):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.numbers[:] = numbers
    return atoms


def final(displacement):
    """A start that carries its end."""
    atoms = silicon()
    atoms.arrays["final_positions"] = atoms.positions + displacement
    return from_atoms(atoms, source="final.xyz frame 0")


def roles(start, target, name="p"):
    """The two frames of a pair."""
    for atoms, role in ((start, "start"), (target, "target")):
        atoms.info |= {"pair_id": name, "role": role}
    return [from_atoms(atoms, source=f"roles.xyz frame {k}") for k, atoms in enumerate((start, target))]


def with_forces(atoms, forces):
    """The structure as it lies, with forces."""
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    return atoms


# ---- three forms


def test_trajectory_gives_first_and_last_step():
    (pair,) = read_pairs(FILE)
    raw = ase.io.read(FILE, ":")
    np.testing.assert_array_equal(pair.start.positions, raw[0].positions)
    np.testing.assert_array_equal(pair.target.positions, raw[-1].positions)
    np.testing.assert_array_equal(pair.target.numbers, raw[0].numbers)
    np.testing.assert_array_equal(pair.labels.forces, raw[-1].get_forces())
    assert pair.labels.energy == raw[-1].get_potential_energy() and pair.labels.weights.all()
    assert pair.info["relax_id"] == "001_sub_B_1" and "sub_B_1.extxyz" in pair.source
    assert pair.fixed.shape == (32, 3) and not pair.fixed.any()


def test_order_of_the_file_does_not_matter_and_relaxations_may_be_mixed(tmp_path):
    raw = ase.io.read(FILE, ":")
    other = [a.copy() for a in raw]
    for atoms in other:
        atoms.info["relax_id"] = "b"
    ase.io.write(tmp_path / "mixed.extxyz", [raw[3], other[0], raw[0], other[3]])
    first, second = read_pairs([tmp_path / "mixed.extxyz"])
    np.testing.assert_allclose(first.start.positions, raw[0].positions, atol=1e-7)
    np.testing.assert_allclose(second.target.positions, raw[3].positions, atol=1e-7)


def test_final_positions_give_a_pair_whose_target_has_no_labels():
    (pair,) = pairs_from_frames([final(0.1)])
    np.testing.assert_allclose(pair.target.positions - pair.start.positions, 0.1)
    assert "final_positions" not in pair.info and not pair.labels.weights.any()
    assert pair.labels.forces.shape == (8, 3)


def test_two_frames_with_roles_give_a_pair(tmp_path):
    start, target = silicon(), silicon()
    target.positions += 0.2
    result = roles(start, with_forces(target, np.full((8, 3), 0.01)))
    other = pairs_from_frames([*result[::-1], final(0.1)])
    np.testing.assert_allclose(other[0].target.positions - other[0].start.positions, 0.2)
    np.testing.assert_array_equal(other[0].labels.forces, 0.01)
    assert other[0].info["pair_id"] == "p" and len(other) == 2


def test_pair_id_beside_final_positions_is_only_a_name():
    frame = final(0.1)
    frame.info["pair_id"] = "defect"
    (pair,) = pairs_from_frames([frame])
    assert pair.info["pair_id"] == "defect"


# ---- what cannot be used


def altered(change):
    result = frames()
    result[-1] = change(result[-1])
    return result


def substitute(frame):
    return frame._replace(system=frame.system._replace(numbers=np.full(32, 14, np.int32)))


def grow(frame):
    return frame._replace(system=frame.system._replace(cell=frame.system.cell * 1.01))


def explode(frame):
    return frame._replace(system=frame.system._replace(positions=frame.system.positions * np.nan))


def open_surface(frame):
    return frame._replace(system=frame.system._replace(pbc=np.array([True, True, False])))


def with_info(frame, **info):
    return frame._replace(info=frame.info | info)


WRONG = {
    "atoms": (lambda: altered(substitute), r"001_sub_B_1 \(sub_B_1.extxyz.*: the start is BSi31, the target Si32"),
    "infinite": (lambda: altered(explode), "001_sub_B_1.*: positions, cell or labels hold a value that is not finite"),
    "cell": (lambda: altered(grow), r"the cell changes from .*pass variable_cell=True"),
    "pbc": (lambda: altered(open_surface), r"pbc is \[True, True, True\] at the start, \[True, True, False\]"),
    "alone": (lambda: frames()[:1], r"steps 0 to 0 of 17: the start \(step 0\) or its partner.*missing"),
    "no-end": (lambda: frames()[:-1], r"the relaxed structure \(step 16\), is missing"),
    "no-start": (lambda: frames()[1:], r"steps 1 to 16 of 17: the start"),
    "twice": (lambda: [frames()[0], *frames()], "has step 0 twice. Do two relaxations bear the same relax_id"),
    "step": (lambda: [with_info(frames()[0], step="last")], "step is 'last', not a number"),
    "neither": (lambda: [from_atoms(ase.Atoms("H"), source="x.xyz frame 3")], "x.xyz frame 3: nothing says where"),
    "nan": (lambda: [final(np.nan)], "final.xyz frame 0, final_positions: Position of atom 0 is .*not finite"),
    "words": (lambda: [with_info(final(0), final_positions="none")], "final_positions: could not convert"),
    "shape": (lambda: [with_info(final(0), final_positions=np.zeros((7, 3)))], r"shape is \(7, 3\).*\(8, 3\)"),
    "collision": (lambda: [final(-silicon().positions)], "two atoms on one place"),
    "cell-shape": (lambda: [with_info(final(0), final_cell=np.ones(6))], "final_positions: cannot reshape"),
    "role-alone": (lambda: roles(silicon(), silicon())[:1], r"Pair p \(roles.xyz frame 0\) has the roles start; needs"),
    "two-starts": (lambda: roles(silicon(), silicon())[:1] * 2, "has the roles start, start; needs one"),
    "role": (lambda: [with_info(f, role="end") for f in roles(silicon(), silicon())], "the roles end, end; needs"),
    "mask": (lambda: [with_info(final(0.1), fixed=np.zeros((8, 2)))], r"`fixed` has shape \(8, 2\)"),
    "empty": (lambda: [], "There are no frames"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_left_out_by_name_and_the_rest_goes_on(make, message):
    result = make()
    with pytest.raises(ValueError, match=message):
        pairs_from_frames(result)
    if not result:
        return
    with pytest.warns(UserWarning, match=r"(?s)Left out \d of \d pairs or single frames:.*" + message):
        (good,) = pairs_from_frames([*result, final(0.125)])
    np.testing.assert_allclose(good.target.positions - good.start.positions, 0.125)


def test_the_first_ten_reasons_are_told_and_the_others_counted():
    bad = [from_atoms(ase.Atoms("H"), source=f"x.xyz frame {k}") for k in range(14)]
    with pytest.warns(UserWarning) as caught:
        pairs_from_frames([*bad, final(0.1)])
    (message,) = (str(w.message) for w in caught)
    assert message.startswith("Left out 14 of 15 pairs") and message.count("nothing says where") == 10
    assert "frame 9" in message and "frame 10" not in message and message.endswith("and 4 more")


def test_frames_and_files_that_cannot_be_read_are_left_out_by_name(tmp_path):
    raw = ase.io.read(FILE, ":")
    ase.io.write(tmp_path / "good.extxyz", raw)
    raw[1].positions[3, 1] = np.nan
    ase.io.write(tmp_path / "nan.extxyz", raw)  # a step in between: the ends are good
    text = (tmp_path / "good.extxyz").read_text()
    (tmp_path / "cut.extxyz").write_text(text.replace("001_sub_B_1", "cut")[: int(0.9 * len(text))])
    with pytest.warns(UserWarning, match=r"(?s)1 of 2 pairs.*nan.extxyz, frame 1: Position of atom 3 is .*not finite"):
        assert len(read_pairs(tmp_path / "nan.extxyz")) == 1
    with pytest.warns(UserWarning, match=r"(?s)2 of 3.*cut.extxyz, frame 3: not readable.*Relaxation cut.*0 to 8 of"):
        assert len(read_pairs([tmp_path / "cut.extxyz", tmp_path / "good.extxyz"])) == 1
    with pytest.raises(FileNotFoundError, match="nothing.extxyz"):
        read_pairs(tmp_path / "nothing.extxyz")


# ---- relaxed or not


def test_target_that_is_not_relaxed_is_left_out_or_kept_if_wanted():
    message = r"001_sub_B_1.*the target is not relaxed, its largest force is 0.0353 eV/Å \(fmax 0.03\)"
    with pytest.raises(ValueError, match=message):
        pairs_from_frames(frames(), fmax=0.03)
    with pytest.warns(UserWarning, match="(?s)The target is not relaxed in 1 of 1 pairs.*" + message) as caught:
        (pair,) = pairs_from_frames(frames(), fmax=0.03, keep_unrelaxed=True)
    assert len(caught) == 1 and pair.labels.weights[1] == 1


def test_forces_on_fixed_components_do_not_count():
    forces = np.zeros((8, 3))
    forces[0], forces[1, 2] = 0.5, 0.7
    start, target = silicon(), silicon()
    target.positions[2:] += 0.1
    with_forces(target, forces)
    with pytest.raises(ValueError, match=r"0.866 eV/Å .*on atoms that did not move: .*`move_mask`"):
        pairs_from_frames(roles(start, target))
    start.set_constraint([FixAtoms([0]), FixCartesian(1, (False, False, True))])
    (pair,) = pairs_from_frames(roles(start, target))
    assert pair.fixed.sum() == 4 and pair.fixed[0].all() and pair.fixed[1, 2]


def test_cell_that_is_not_relaxed_is_left_out_with_a_word_on_pressure():
    pairs = read(VARIABLE)
    labels = pairs[2].labels
    pairs[2] = pairs[2]._replace(labels=labels._replace(virial=10 * labels.virial))
    message = (
        r"frame 2\): the cell of the target is not relaxed at zero pressure, .* is 0.243 eV per atom \(fmax 0.05\);"
    )
    with pytest.warns(UserWarning, match=f"(?s)1 of 3 pairs.*{message} of another pressure nothing is known"):
        assert len(pairs_from_frames(pairs, fmax=0.05, variable_cell=True)) == 2
    with pytest.warns(UserWarning, match="(?s)The target is not relaxed in 1 of 3 pairs"):
        assert len(pairs_from_frames(pairs, fmax=0.05, variable_cell=True, keep_unrelaxed=True)) == 3


# ---- cells


def test_variable_cells_are_kept_only_if_wanted():
    with pytest.raises(ValueError, match="(?s)insertion_wf_Y2Mg_PO4.*the cell changes from.*pass variable_cell=True"):
        read_pairs(VARIABLE)
    raw = ase.io.read(VARIABLE, ":")
    pairs = read_pairs(VARIABLE, variable_cell=True)
    assert [pair.start.n_atoms for pair in pairs] == [13, 16, 14]
    for pair, start, target in zip(pairs, raw[0::3], raw[2::3], strict=True):
        np.testing.assert_array_equal(pair.start.cell, start.cell)
        np.testing.assert_array_equal(pair.target.cell, target.cell)
        np.testing.assert_allclose(pair.labels.virial, -target.get_stress(voigt=False) * target.get_volume())


def test_final_cell_is_the_cell_of_the_target(tmp_path):
    atoms = silicon()
    cell = atoms.cell.array @ (np.eye(3) + 0.02 * np.diag([1, 2, 3]) + 0.01 * np.ones((3, 3)))
    atoms.arrays["final_positions"] = atoms.get_scaled_positions() @ cell
    for given in (cell, cell.ravel()):
        atoms.info["final_cell"] = given
        ase.io.write(tmp_path / "cells.extxyz", atoms)
        (pair,) = read_pairs(tmp_path / "cells.extxyz", variable_cell=True)
        np.testing.assert_allclose(pair.target.cell, cell, atol=1e-8)
        np.testing.assert_array_equal(pair.start.cell, atoms.cell)
    with pytest.raises(ValueError, match="variable_cell=True"):
        read_pairs(tmp_path / "cells.extxyz")


def test_rounding_of_a_fixed_cell_is_removed():
    start, target = silicon(), silicon()
    target.cell[0, 0] += 5e-5
    (pair,) = pairs_from_frames(roles(start, target))
    np.testing.assert_array_equal(pair.target.cell, pair.start.cell)


def test_lattice_vectors_that_mean_nothing_may_differ():
    start, target = silicon(), silicon()
    for atoms, length in ((start, 20), (target, 30)):
        atoms.pbc, atoms.cell[2, 2] = (True, True, False), length
    (pair,) = pairs_from_frames(roles(start, target))
    np.testing.assert_array_equal(pair.target.cell, pair.start.cell)


@pytest.mark.parametrize(
    "turn", [lambda c: c[[1, 2, 0]], lambda c: 2 * c, lambda c: c.T], ids=["order", "size", "rows"]
)
def test_cell_that_cannot_be_the_relaxed_one_is_left_out(turn):
    start, target = silicon(), silicon()
    start.set_cell([[5.4, 0, 0], [1.4, 5.2, 0], [0, 0, 5.4]])
    target.set_cell(turn(start.cell.array))
    with pytest.raises(ValueError, match="too large a strain or a rotation. Are its vectors in another order"):
        pairs_from_frames(roles(start, target), variable_cell=True)


# ---- fixed atoms


@pytest.mark.parametrize(
    "constraints",
    [
        [FixAtoms([0, 3])],
        [FixCartesian(2, (True, False, True))],
        [FixAtoms([0]), FixCartesian([1, 2], (False, False, True))],
    ],
    ids=["atoms", "components", "both"],
)
def test_constraints_survive_extxyz(tmp_path, constraints):
    start, target = silicon(), silicon()
    target.positions[4:] += 0.1
    for atoms, role in ((start, "start"), (target, "target")):
        atoms.info |= {"pair_id": 1, "role": role}
        atoms.set_constraint(constraints)
    expected = system.fixed_components(start)
    ase.io.write(tmp_path / "fixed.extxyz", [start, target])
    assert "move_mask" in (tmp_path / "fixed.extxyz").read_text()
    (pair,) = read_pairs(tmp_path / "fixed.extxyz")
    np.testing.assert_array_equal(pair.fixed, expected)
    assert 0 < expected.sum() < 24 and "fixed" not in pair.info


def test_fixed_components_are_those_that_ase_does_not_move(rng):
    atoms = silicon()
    atoms.set_constraint(
        [FixAtoms([5]), FixCartesian([1, 5], (True, False, False)), FixAtoms(mask=[True] + [False] * 7)]
    )
    before = atoms.positions.copy()
    atoms.set_positions(before + rng.uniform(0.1, 0.2, size=(8, 3)))
    np.testing.assert_array_equal(system.fixed_components(atoms), atoms.positions == before)
    assert system.other_constraints(atoms) == ()


def test_a_column_named_fixed_says_the_same(tmp_path):
    atoms = silicon()
    atoms.arrays["final_positions"] = atoms.positions + np.array([[0.0]] * 3 + [[0.1]] * 5)
    atoms.arrays["fixed"] = np.arange(8) < 3
    ase.io.write(tmp_path / "column.extxyz", atoms)
    (pair,) = read_pairs(tmp_path / "column.extxyz")
    np.testing.assert_array_equal(pair.fixed, np.repeat(np.arange(8) < 3, 3).reshape(8, 3))


def test_other_constraints_are_named_and_ignored():
    start, target = silicon(), silicon()
    start.set_constraint([FixBondLength(0, 1), FixAtoms([2])])
    with pytest.warns(
        UserWarning, match=r"(?s)other than FixAtoms and FixCartesian are ignored in 1 of 1.*FixBondLength"
    ):
        (pair,) = pairs_from_frames(roles(start, target))
    assert pair.fixed.sum() == 3


def test_fixed_atoms_that_move_are_a_warning_and_other_ones_at_the_target_an_error():
    start, target = silicon(), silicon()
    target.positions[0] += start.cell[1] + 0.003  # another image, and rounding
    start.set_constraint(FixAtoms([0, 1]))
    assert len(pairs_from_frames(roles(start, target))) == 1
    target.positions[1, 2] -= 0.4
    with pytest.warns(UserWarning, match="(?s)What is fixed moves in 1 of 1 pairs.*by up to 0.40 Å"):
        pairs_from_frames(roles(start, target))
    target.set_constraint(FixAtoms([3]))
    with pytest.raises(ValueError, match="6 components are fixed at the start, 3 at the target"):
        pairs_from_frames(roles(start, target))


# ---- order of the atoms


def test_target_in_another_order_is_matched(rng):
    raw = ase.io.read(FILE, ":")
    order = rng.permutation(32)
    shuffled = raw[-1][order]
    shuffled.positions += rng.integers(-2, 3, size=(32, 3)) @ shuffled.cell.array + [0.2, -0.1, 0.3]
    with_forces(shuffled, raw[-1].get_forces()[order])
    result = [from_atoms(raw[0], source="a"), from_atoms(shuffled, source="b")]
    changed = rf"{(order != np.arange(32)).sum()} of 32 atoms change place, the largest displacement is then 0\.\d\d Å"
    with pytest.warns(UserWarning, match=f"(?s)in another order than.*matched to them in 1 of 1.*{changed}"):
        (pair,) = pairs_from_frames(result)
    (expected,) = read_pairs(FILE)
    np.testing.assert_array_equal(pair.target.numbers, pair.start.numbers)
    np.testing.assert_array_equal(pair.labels.forces, expected.labels.forces)
    d = pair.target.positions - expected.target.positions - [0.2, -0.1, 0.3]
    np.testing.assert_allclose(np.round(d @ np.linalg.inv(pair.start.cell)) @ pair.start.cell, d, atol=1e-9)


def test_target_in_another_order_and_another_cell_is_matched(rng):
    raw = ase.io.read(VARIABLE, "0:3")
    order = rng.permutation(13)
    shuffled = raw[-1][order]
    result = [from_atoms(raw[0]), from_atoms(shuffled)]
    result[1].info["n_steps"] = 15
    with pytest.warns(UserWarning, match="of 13 atoms change place"):
        (pair,) = pairs_from_frames(result, variable_cell=True)
    np.testing.assert_array_equal(pair.target.positions, raw[-1].positions)


def test_constraints_of_a_target_in_another_order_are_permuted_with_it():
    start, target = silicon([5, 14, 14, 14, 14, 14, 14, 14]), silicon([5, 14, 14, 14, 14, 14, 14, 14])
    start.set_constraint(FixAtoms([0, 1]))
    target.set_constraint(FixAtoms([0, 1]))
    with pytest.warns(UserWarning, match="8 of 8 atoms change place"):
        (pair,) = pairs_from_frames(roles(start, target[::-1]))
    np.testing.assert_array_equal(pair.target.positions, pair.start.positions)
    np.testing.assert_array_equal(pair.fixed[:, 0], np.arange(8) < 2)


def test_atoms_that_cannot_be_matched_are_left_out():
    start, target = ase.Atoms("OH", [[0, 0, 0], [1, 0, 0]]), ase.Atoms("HO", [[30, 0, 0], [0, 0, 0]])
    with pytest.raises(
        ValueError, match=r"in another order, and to match them fails: .*largest displacement.*than 5 Å"
    ):
        pairs_from_frames(roles(start, target))


def test_atoms_of_one_element_that_appear_permuted_are_a_warning():
    start, target = silicon(), silicon()
    target.positions[:] = target.positions[[1, 0, 2, 3, 5, 4, 6, 7]] + 0.05
    with pytest.warns(UserWarning, match=r"(?s)appear permuted.*1 of 1.*RMS displacement \d\.\d\d Å, if .* 0\.00 Å"):
        (pair,) = pairs_from_frames(roles(start, target))
    np.testing.assert_array_equal(pair.target.positions, target.positions)


def test_a_common_translation_or_another_image_is_no_permutation():
    start, target = silicon(), silicon()
    target.positions += np.array([2.6, 1.0, -0.3]) + np.arange(8)[:, None] * target.cell[2]
    (pair,) = pairs_from_frames(roles(start, target))
    np.testing.assert_array_equal(pair.target.positions, target.positions)


def test_assignment_is_the_best_of_all_within_elements(rng):
    numbers = np.array([1, 8, 1, 1, 8, 1], np.int32)
    start = system.System(rng.uniform(0, 3, size=(6, 3)), numbers, np.zeros((3, 3)), np.zeros(3, bool))
    target = start._replace(positions=rng.uniform(0, 3, size=(6, 3)), numbers=numbers[::-1])
    allowed = [np.array(p) for p in permutations(range(6)) if (target.numbers[[*p]] == numbers).all()]
    assert len(allowed) == 48
    cost = [np.sum((target.positions[p] - start.positions) ** 2) for p in allowed]
    result = matching._assign(start, target.numbers, target.positions)
    np.testing.assert_array_equal(result, allowed[int(np.argmin(cost))])


def test_no_warning_for_good_files():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read_pairs([FILE])) > 0 and len(read_pairs(VARIABLE, variable_cell=True)) > 0
    assert caught == []


@pytest.mark.parametrize("cells", [1, 900])
def test_both_ends_of_a_pair_come_home_together_in_float32(tmp_path, cells):
    """Displacements from start to target are those of the file, whatever images it gives."""
    atoms = silicon()
    way = np.random.default_rng(3).normal(scale=0.3, size=(8, 3))
    steps = np.random.default_rng(4).integers(-cells, cells + 1, (8, 3)) @ atoms.cell.array
    start, end = atoms.positions + steps, atoms.positions + steps + way
    rows = [f"Si {' '.join(map(repr, (*a, *b)))}" for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    vectors = " ".join(map(repr, atoms.cell.array.ravel().tolist()))
    header = f'Lattice="{vectors}" Properties=species:S:1:pos:R:3:final_positions:R:3'
    (tmp_path / "far.xyz").write_text("\n".join(["8", header, *rows, ""]))
    (exact,) = read_pairs(tmp_path / "far.xyz")
    np.testing.assert_allclose(exact.target.positions - exact.start.positions, way, atol=1e-9)
    (pair,) = read_pairs(tmp_path / "far.xyz", dtype=np.float32)
    assert pair.start.positions.dtype == pair.target.positions.dtype == pair.labels.forces.dtype == np.float32
    np.testing.assert_allclose(pair.target.positions - pair.start.positions, way, atol=1e-5)
    assert np.abs(pair.start.positions).max() < 60
    result = lattice.shortest(pair.start.positions - atoms.positions, atoms.cell.array, atoms.pbc)
    assert np.abs(result).max() < 1e-5
