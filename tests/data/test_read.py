"""Reading frames: where labels are found, their signs, and every error message."""

import ase
import ase.build
import ase.geometry
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from lamjax import classical, data, neighbors
from lamjax.data import from_atoms
from lamjax.neighbors.host import pairs


def crystal(a: float = 3.6) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=a, cubic=True)
    atoms.rattle(0.02, seed=1)
    return atoms


def with_results(atoms: ase.Atoms, **results) -> ase.Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def written(tmp_path, frames, name="frames.extxyz"):
    path = tmp_path / name
    ase.io.write(path, frames, format="extxyz")
    return path


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.extxyz.gz", "frames.traj"])
def test_labels_of_ase_results(tmp_path, name):
    atoms = crystal()
    atoms.calc = EMT()
    stored = with_results(
        atoms.copy(), energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=atoms.get_stress()
    )
    ase.io.write(tmp_path / name, [stored, stored])
    first, second = data.read(tmp_path / name)
    assert (first.source, second.source) == (f"{name} frame 0", f"{name} frame 1")
    np.testing.assert_array_equal(first.labels.weights, 1)
    np.testing.assert_allclose(first.labels.energy, atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(first.labels.forces, atoms.get_forces(), atol=1e-7)
    expected = -atoms.get_volume() * atoms.get_stress(voigt=False)
    np.testing.assert_allclose(first.labels.virial, expected, atol=1e-6)


def test_a_compressed_crystal_has_negative_stress_and_positive_virial(tmp_path):
    atoms = crystal(3.4)
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    frame = data.from_atoms(with_results(atoms.copy(), stress=atoms.get_stress()))
    assert np.trace(stress) < 0 < np.trace(frame.labels.virial)
    strained = [crystal(3.4 * (1 + e)) for e in (-1e-4, 1e-4)]
    for other in strained:
        other.calc = EMT()
    slope = (strained[1].get_potential_energy() - strained[0].get_potential_energy()) / 2e-4
    np.testing.assert_allclose(-slope, np.trace(frame.labels.virial), rtol=0.02)  # virial = -dE/dstrain


def test_ref_keys_come_first(tmp_path):
    atoms = with_results(crystal(), energy=1.0, forces=np.ones((4, 3)), stress=np.arange(6.0))
    atoms.info |= {"REF_energy": -3.0, "REF_virial": np.arange(9.0)}
    atoms.arrays["REF_forces"] = np.full((4, 3), 2.0)
    (frame,) = data.read(written(tmp_path, atoms))
    assert frame.keys == ("REF_energy", "REF_forces", "REF_virial")
    assert frame.labels.energy == -3.0
    np.testing.assert_array_equal(frame.labels.forces, 2.0)
    assert sorted(frame.labels.virial.ravel()) == list(range(9))


@pytest.mark.parametrize("shape", [(3, 3), (9,), (6,)])
def test_shapes_of_stress(shape):
    full = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    given = full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] if shape == (6,) else full.reshape(shape)
    atoms = crystal()
    atoms.info["REF_stress"] = given
    frame = data.from_atoms(atoms)
    np.testing.assert_allclose(frame.labels.virial, -atoms.get_volume() * full)


def test_virials_count_only_where_the_cell_is_periodic():
    atoms = crystal()
    atoms.pbc = (True, True, False)
    frame = data.from_atoms(with_results(atoms, energy=1.0, stress=np.ones(6)))
    np.testing.assert_array_equal(frame.labels.weights, [1, 0, 0])
    np.testing.assert_array_equal(frame.labels.virial, 0)


def test_forces_are_read_without_constraints():
    atoms = crystal()
    atoms.set_constraint(FixAtoms([0]))
    atoms = with_results(atoms, forces=np.ones((4, 3)))
    np.testing.assert_array_equal(data.from_atoms(atoms).labels.forces, 1)


def test_mixed_label_sets_and_summary(tmp_path):
    frames = [
        with_results(crystal(), energy=1.0),
        with_results(crystal().repeat((2, 1, 1)), forces=np.zeros((8, 3))),
        ase.Atoms("OH", [(0, 0, 0), (0, 0, 1)]),
    ]
    frames[2].info["REF_energy"] = 2.0
    result = data.read([written(tmp_path, frames)])
    np.testing.assert_array_equal([f.labels.weights for f in result], [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    summary = data.summarize(result)
    assert summary.n_frames == 3 and summary.periodic == 2 and summary.n_atoms == (2, 4.0, 8)
    assert summary.labelled == {"energy": 2, "forces": 1, "virial": 0}
    assert summary.keys == {"energy: energy": 1, "energy: REF_energy": 1, "forces: forces": 1}
    assert summary.elements == {"H": 1, "O": 1, "Cu": 2}


def test_further_keys_of_the_file_are_kept(tmp_path):
    atoms = crystal()
    atoms.info["relax_id"] = "a1"
    atoms.arrays["final_positions"] = atoms.positions + 1
    (frame,) = data.read(written(tmp_path, atoms))
    assert frame.info["relax_id"] == "a1"
    np.testing.assert_allclose(frame.info["final_positions"], atoms.positions + 1, atol=1e-6)


def nan_position():
    atoms = crystal()
    atoms.positions[2, 1] = np.nan
    return atoms


def on_one_place():
    atoms = crystal()
    atoms.positions[3] = atoms.positions[1] + atoms.cell[0]
    return atoms


def nan_forces():
    return with_results(crystal(), energy=0.0, forces=np.full((4, 3), np.nan))


BAD = {
    "nan position": (nan_position, r"frame 1: Position of atom 2 is .* not finite"),
    "one place": (on_one_place, r"frame 1: Atoms 1 and 3 are .* Å apart: two atoms on one place. Remove"),
    "nan forces": (nan_forces, r"frame 1: The forces label holds a value that is not finite"),
    "inf energy": (lambda: with_results(crystal(), energy=np.inf), r"frame 1: The energy label holds a value"),
    "element": (lambda: ase.Atoms("Xe"), r"frame 1: element Xe is not in the model's type map \[Cu, O\]"),
    "no cell": (lambda: ase.Atoms("Cu", pbc=True), r"frame 1: The structure is periodic along axis 0"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_frames_are_named_with_file_and_remedy(tmp_path, case):
    make, message = BAD[case]
    path = tmp_path / "bad.traj"  # keeps NaN and missing cells as they are
    ase.io.write(path, [crystal(), make()])
    with pytest.raises(ValueError, match=r"bad\.traj, " + message):
        data.read(path, elements=("Cu", "O"))


def test_missing_labels_are_an_error_where_they_are_required(tmp_path):
    path = written(tmp_path, [with_results(crystal(), energy=1.0)])
    assert len(data.read(path, require=("energy",))) == 1
    with pytest.raises(ValueError, match=r"frames.extxyz, frame 0: the frame has no forces label.*holds: energy"):
        data.read(path, require=("energy", "forces"))
    with pytest.raises(ValueError, match="Unknown label stress"):
        data.read(path, require=("stress",))


def test_wrong_shape_of_a_label(tmp_path):
    atoms = crystal()
    atoms.info["REF_stress"] = np.ones(5)
    with pytest.raises(ValueError, match=r"frame 0: REF_stress has shape \(5,\); expected"):
        data.read(written(tmp_path, atoms))


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.extxyz: no such file"):
        data.read(tmp_path / "nowhere.extxyz")
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(ValueError, match="empty.extxyz: the file is empty"):
        data.read(tmp_path / "empty.extxyz")
    (tmp_path / "notes.extxyz").write_text("this is not a structure\n")
    with pytest.raises(ValueError, match="notes.extxyz, frame 0: not readable as a structure file"):
        data.read(tmp_path / "notes.extxyz")
    (tmp_path / "model.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="model.bin, frame 0: not readable as a structure file"):
        data.read(tmp_path / "model.bin")


@pytest.mark.parametrize("unit, warns", [(1.0, False), (10.0, True)])
def test_positions_in_another_unit_are_warned_of(tmp_path, unit, warns):
    """A molecule in nm relaxed to "converged" without a step, where forces of a model have long come to an end."""
    ase.io.write(tmp_path / "water.extxyz", ase.Atoms("OH2", np.array([(0, 0, 0), (0.96, 0, 0), (0, 0.96, 0)]) / unit))
    remarks = []
    list(data.iterate(tmp_path / "water.extxyz", on_remark=remarks.append))
    told = [remark for remark in remarks if remark.severity == "warning"]
    assert len(told) == warns and all("nearer than 0.4 Å" in r.what and "10 Å" in r.remedy for r in told)


def test_a_damaged_archive_is_named(tmp_path):
    path = written(tmp_path, [crystal()] * 20, "frames.extxyz.gz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"frames.extxyz.gz, frame \d+: not readable as a structure file .EOFError"):
        data.read(path)


def test_a_file_that_was_cut_short_names_the_frame(tmp_path):
    path = written(tmp_path, [crystal(), crystal()])
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(ValueError, match="frames.extxyz, frame .: not readable"):
        data.read(path)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
@pytest.mark.parametrize("place", ["arrays", "info"])
def test_components_that_are_fixed(tmp_path, shape, place):
    """A per-atom array `fixed`, of truth values or of 0 and 1, beside what FixAtoms holds."""
    atoms, held = crystal(), np.zeros(shape, int)
    held[1] = 1
    atoms.set_constraint(FixAtoms([3]))
    if place == "arrays":
        atoms.set_array("fixed", held)
    else:
        atoms.info["fixed"] = held.astype(bool).ravel()
    (frame,) = data.read(written(tmp_path, atoms))
    np.testing.assert_array_equal(frame.info["fixed"], np.repeat([[False], [True], [False], [True]], 3, axis=1))


@pytest.mark.parametrize("word", [True, False, 3, "yes"])
def test_a_word_fixed_in_the_header_holds_no_atom(tmp_path, word):
    atoms = crystal()
    atoms.info["fixed"] = word
    notes: list = []
    (frame,) = data.iterate(written(tmp_path, atoms), on_remark=notes.append)
    assert "fixed" not in frame.info
    assert "says nothing of single atoms" in notes[0].what


def test_a_fixed_array_that_is_no_truth_value(tmp_path):
    atoms = crystal()
    atoms.set_array("fixed", np.array([0.0, 0.5, 1.0, 0.0]))
    with pytest.raises(ValueError, match="frame 0: the array `fixed` has shape .* needs a truth value"):
        data.read(written(tmp_path, atoms))


@pytest.mark.parametrize("cells", [3, 700])
def test_unwrapped_frames_in_float32_are_the_same_crystal(tmp_path, cells):
    """From a file, from a store in float32, and in the arrays of a batch."""
    atoms = crystal()
    far = atoms.copy()
    far.positions += np.random.default_rng(1).integers(-cells, cells + 1, (4, 3)) @ atoms.cell.array
    ase.io.write(tmp_path / "far.traj", far)
    frames = data.read(tmp_path / "far.traj")
    data.write_store(tmp_path / "far.h5", frames, np.float32)
    potential = classical.lennard_jones(sigma=2.2, epsilon=0.1, cutoff=4.0)
    packed = data.pack(frames, data.plan(frames, potential.shells, 1, 1, 1), np.float32)
    (one,) = packed.buckets[0].made
    (read,), (stored,) = data.read(tmp_path / "far.traj", np.float32), data.read(tmp_path / "far.h5", np.float32)
    for system in (read.system, stored.system, one.system):
        way = ase.geometry.find_mic(np.asarray(system.positions, float) - atoms.positions, atoms.cell)[1]
        assert system.positions.dtype == np.float32 and way.max() < 3e-6
    d = neighbors.displacements(one.system, one.neighbors)
    reach = np.linalg.norm(np.asarray(d), axis=-1)[np.asarray(one.neighbors.mask)]
    assert reach.max() <= 4.0 + 1e-4 and len(reach) == len(pairs(from_atoms(atoms).system, 4.0)[0])


def test_a_text_where_a_list_is_meant(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", ase.Atoms("Cu", info={"REF_energy": -1.0}))
    assert len(data.read(tmp_path / "a.extxyz", require="energy")) == 1
    with pytest.raises(ValueError, match=r"elements is the text 'Cu'. Give a list of names: elements=\['Si', 'O'\]"):
        data.read(tmp_path / "a.extxyz", elements="Cu")
    with pytest.raises(ValueError, match="read takes ReadOptions, got .*dict"):
        data.read(tmp_path / "a.extxyz", options={"energy_key": "x"})
    with pytest.raises(ValueError, match="elements: 'Si,O' is no chemical element"):
        data.ReadOptions(elements="Si,O")
    assert data.ReadOptions(elements="Si") == data.ReadOptions(elements=["Si"])
    for wrong, message in (
        ({"forces_key": ["a"]}, "forces_key: expected a text, got a list of str"),
        ({"stress_key": ""}, "stress_key: expected a text that is not empty"),
        ({"force_key": "f"}, "force_key: unknown key. Did you mean forces_key"),
    ):
        with pytest.raises(ValueError, match=f"ReadOptions: {message}"):
            data.ReadOptions(**wrong)
