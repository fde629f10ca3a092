"""DeePMD folders: read as numpy and as DeePMD-kit read them, and every error message."""

import shutil

import ase.data
import label_frames as make
import numpy as np
import pytest
from typer.testing import CliRunner

from lamjax import data
from lamjax.cli import app
from lamjax.data.deepmd import systems

MADE_UP = make.FIXTURES.parent / "deepmd_data"
SYSTEMS = {
    "mixed_6": make.FIXTURES / "data" / "oxide" / "mixed_6",
    "methanol": MADE_UP / "methanol",
    "padded": MADE_UP / "padded",
}


@pytest.fixture
def copy(tmp_path):
    """A copy of a system that a test may spoil."""

    def make_copy(name):
        shutil.copytree(SYSTEMS[name], tmp_path / name)
        return tmp_path / name

    return make_copy


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_frames_equal_those_of_deepmd(name):
    reference = dict(np.load(MADE_UP / "reader_reference.npz"))
    expected = {key.partition("__")[2]: reference[key] for key in reference if key.startswith(f"{name}__")}
    symbols = reference["type_map"]
    frames = data.read(SYSTEMS[name])
    assert len(frames) == len(expected["coord"])
    for k, (system, labels, *_) in enumerate(frames):
        real = expected["atype"][k] >= 0
        assert [ase.data.chemical_symbols[z] for z in system.numbers] == list(symbols[expected["atype"][k][real]])
        np.testing.assert_array_equal(system.positions, expected["coord"][k][real])
        assert (system.pbc == ("box" in expected)).all()
        np.testing.assert_array_equal(system.cell.ravel(), expected["box"][k] if "box" in expected else np.zeros(9))
        flags = [expected[f"find_{label}"][k] for label in ("energy", "force", "virial")]
        np.testing.assert_array_equal(labels.weights, flags)
        np.testing.assert_array_equal(labels.energy, expected["energy"][k][0])
        np.testing.assert_array_equal(labels.forces, expected["force"][k][real])
        np.testing.assert_array_equal(labels.virial.ravel(), expected["virial"][k])
        assert (system.fparam is None) == (not expected["find_fparam"][k])
        if name == "padded":
            np.testing.assert_array_equal(system.fparam, expected["fparam"][k])
            np.testing.assert_array_equal(system.aparam, expected["aparam"][k][real])


def test_frames_equal_the_arrays():
    folder = make.FIXTURES / "data" / "water" / "H128O64"
    stored = {name: np.load(folder / "set.000" / f"{name}.npy") for name in ("coord", "box", "energy", "force")}
    symbols = (folder / "type_map.raw").read_text().split()
    numbers = make.atomic_numbers([symbols[int(t)] for t in (folder / "type.raw").read_text().split()])
    for k, frame in enumerate(data.read(folder, dtype=np.float32)):
        assert frame.source == f"H128O64/set.000 frame {k}" and frame.system.positions.dtype == np.float32
        np.testing.assert_array_equal(frame.system.numbers, numbers)
        np.testing.assert_array_equal(frame.system.positions.ravel(), stored["coord"][k].astype(np.float32))
        np.testing.assert_array_equal(frame.system.cell.ravel(), stored["box"][k].astype(np.float32))
        assert frame.labels.energy == stored["energy"][k] and frame.labels.energy.dtype == np.float64
        np.testing.assert_array_equal(frame.labels.forces.ravel(), stored["force"][k].astype(np.float32))
        np.testing.assert_array_equal(frame.labels.weights, [1, 1, 0])


def test_a_system_is_a_lazy_sequence_over_its_sets():
    system = data.DeepmdSystem(SYSTEMS["methanol"])
    assert len(system) == 5
    assert all(isinstance(a, np.memmap) for part in system.sets for a in part.arrays.values())
    np.testing.assert_array_equal(system[3].positions.ravel(), np.load(system.path / "set.001" / "coord.npy")[0])
    np.testing.assert_array_equal(system[-1].positions, system[4].positions)
    with pytest.raises(IndexError):
        system[5]
    assert [frame.source for frame in data.iterate(system.path)] == [
        *(f"methanol/set.000 frame {k}" for k in range(3)),
        *(f"methanol/set.001 frame {k}" for k in range(2)),
    ]


def test_a_tree_is_read_in_order_beside_other_files(copy, tmp_path):
    copy("methanol"), copy("padded")
    assert systems(tmp_path) == [tmp_path / "methanol", tmp_path / "padded"]
    frames = data.read([tmp_path, SYSTEMS["mixed_6"]])
    assert len(frames) == 5 + 3 + 28
    assert frames[5].source == f"{tmp_path.name}/padded/set.000 frame 0"
    assert data.summarize(frames).labelled == {"energy": 36, "forces": 36, "virial": 31}


def test_without_a_type_map_the_elements_of_the_model_are_meant(copy):
    folder = copy("methanol")
    (folder / "type_map.raw").unlink()
    with pytest.raises(ValueError, match="methanol: there is no type_map.raw.*Add it .*or say which model's elements"):
        data.read(folder)
    frame = data.read(folder, elements=("Si", "Ge", "H"))[0]
    assert list(frame.system.numbers) == [14, 32, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("names", "given", "numbers"),
    [
        ("OW HW CT", ("O", "H", "C"), [8, 1, 6, 6, 6, 6]),
        ("C_1 C_2 C_3", ("C", "C", "C"), [6] * 6),  # what the user wants to be one element is one
        ("C O D", (), None),
        ("C O D", ("C", "O", "H"), None),
        ("C O H", ("Si", "Ge", "Sn"), None),  # a type map of elements says by itself what types are
        (None, ("C", "O", "H"), None),
    ],
)
def test_types_of_other_names_are_the_elements_that_are_given(copy, names, given, numbers):
    folder = copy("methanol")
    expected = data.read(folder)[0].system.numbers if numbers is None else numbers
    (folder / "type_map.raw").unlink() if names is None else (folder / "type_map.raw").write_text(names)
    frame = data.read(folder, options=data.ReadOptions(elements=given))[0]
    np.testing.assert_array_equal(frame.system.numbers, expected)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ("CT OW HW", (), r"type_map.*--elements C,O,H, in a config type_map: \[C, O, H\]"),
        ("D H O", (), "type 'D', which is no chemical symbol"),  # which a model may know apart
        ("CT OW HW", ("C", "O"), "the types are CT, OW, HW, the elements given for them are C, O. Name one for each"),
        ("C OW HW", ("Si", "O", "H"), "the types are C, OW, HW, the elements given for them are Si, O, H"),
    ],
)
def test_types_of_other_names_are_refused_with_the_remedy(copy, names, given, message):
    folder = copy("methanol")
    (folder / "type_map.raw").write_text(names)
    with pytest.raises(ValueError, match=message):
        data.read(folder, options=data.ReadOptions(elements=given))


def test_forces_alone_and_required_labels(copy):
    folder = copy("methanol")
    for part in ("set.000", "set.001"):
        (folder / part / "energy.npy").unlink()
    assert all(frame.labels.weights.tolist() == [0, 1, 0] for frame in data.read(folder))
    with pytest.raises(ValueError, match="set.000, frame 0: the frame has no energy label"):
        data.read(folder, require=["energy"])


def test_parameters_of_frames_and_atoms_are_packed_or_refused():
    frames = data.read(SYSTEMS["padded"])
    shells = make.MORSE.shells
    (batch,) = data.batches(data.pack(frames, data.plan(frames, shells, 1), np.float32), 3, seed=None, epochs=1)
    sizes = [frame.system.n_atoms for frame in frames]
    assert batch.system.fparam.shape == (1, 3, 2) and batch.system.aparam.shape == (1, 3 * max(sizes), 1)
    assert batch.system.fparam.dtype == batch.system.aparam.dtype == np.float32
    whole = np.concatenate([frame.system.aparam for frame in frames]).astype(np.float32)
    np.testing.assert_array_equal(batch.system.aparam[0, : sum(sizes)], whole)
    np.testing.assert_array_equal(batch.system.aparam[0, sum(sizes) :], 0)
    bare = [*frames[:2], frames[2]._replace(system=frames[2].system._replace(fparam=None), source="bare frame 7")]
    message = "the same fparam or none does: 2 numbers fparam in padded/set.000 frame 0; no fparam in bare frame 7"
    with pytest.raises(ValueError, match=message):
        data.pack(bare, data.plan(bare, shells, 1))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def change(name, edit):
    """A function that edits one array of the first set."""

    def spoil(folder):
        file = folder / "set.000" / f"{name}.npy"
        np.save(file, edit(np.load(file)))

    return spoil


def at(index, value):
    def edit(array):
        array[index] = value
        return array

    return edit


BAD = {
    "no type.raw": (lambda f: (f / "type.raw").unlink(), "padded: there are set.* folders but no type.raw. Add it"),
    "no set": (lambda f: shutil.rmtree(f / "set.000"), r"padded: there is type.raw but no set.\* folder"),
    "letters": (lambda f: (f / "type.raw").write_text("O H"), "type.raw: expected one integer an atom .*'O'"),
    "empty": (lambda f: (f / "type.raw").write_text(""), "type.raw: the file is empty"),
    "type": (change("real_atom_types", at((1, 0), 3)), r"real_atom_types.npy: type 3 \(frame 1\) is outside the type "
             r"map \[Nb, Mo, Ta\]; expected 0 to 2, or -1"),
    "negative": (change("real_atom_types", at((1, 0), -2)), r"type -2 \(frame 1\) is outside"),
    "symbol": (lambda f: (f / "type_map.raw").write_text("Nb Mo Tt"), "type 'Tt', which is no chemical symbol"),
    "width": (lambda f: (f / "type.raw").write_text("0 0 0"), r"coord.npy: the array has shape \(3, 12\), expected "
              r"\(3, 9\) for the 3 atoms"),
    "rows": (change("energy", lambda a: a[:2]), r"energy.npy: the array has shape \(2, 1\), expected \(3, 1\)"),
    "aparam": (change("aparam", lambda a: a[:, :3]), r"aparam.npy: .* expected \(3, a multiple of 4\)"),
    "no box": (lambda f: (f / "set.000" / "box.npy").unlink(), "set.000: box.npy is missing. For molecules add an "
               "empty file `nopbc`"),
    "no coord": (lambda f: (f / "set.000" / "coord.npy").unlink(), "set.000: coord.npy is missing"),
    "truncated": (lambda f: truncate(f / "set.000" / "force.npy"), "force.npy: not a readable npy array.*cut short"),
    "not npy": (lambda f: (f / "set.000" / "force.npy").write_text("forces"), "force.npy: not a readable npy array"),
    "pickle": (change("fparam", lambda a: np.array([{"a": 1}] * 3)), "fparam.npy: not a readable npy array.*refused"),
    "words": (change("fparam", lambda a: np.array(["a"] * 3)), "fparam.npy: holds <U1 of shape"),
    "nan": (change("force", at((2, 0), np.nan)), "set.000, frame 2: The forces label holds a value that is not"),
    "one place": (change("coord", at((1, slice(0, 6)), 0.5)), "set.000, frame 1: Atoms 0 and 1 are .* apart"),
    "no lattice": (change("box", at((0, slice(0, 3)), 0)), "set.000, frame 0: The structure is periodic along axis 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_folders_are_named_with_a_remedy(copy, case):
    spoil, message = BAD[case]
    folder = copy("padded")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        data.read(folder)


def test_foreign_elements_and_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set.000, frame 0: element O is not in the model's type map \[C, H\]"):
        data.read(SYSTEMS["methanol"], elements=("C", "H"))
    with pytest.raises(ValueError, match="a directory without a DeePMD data set in it"):
        data.read(tmp_path)


def test_check_and_eval_take_folders():
    result = CliRunner().invoke(app, ["data", "check", str(MADE_UP), str(SYSTEMS["mixed_6"])])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.replace("│", " ").split())
    for text in ("28", "C(5)", "energy: energy (", "forces: forces (", "virial: virial (", "Ta(3)"):
        assert text in output
    result = CliRunner().invoke(app, ["eval", str(make.FIXTURES / "loss_model.dp"), str(SYSTEMS["mixed_6"])])
    assert result.exit_code == 0, result.output
    assert "virial component" in result.output
