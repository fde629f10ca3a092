"""Extended xyz against ASE's reader, in the dialects that codes write, and where a file is wrong."""

import io
import re

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian

from lamjax import data
from lamjax.data import extxyz

ROWS = "Cu 0.0 0.0 0.0 0.1 0.2 0.3\nCu 1.8 1.8 0.1 -0.1 -0.2 -0.3\n"
LATTICE = "3.6 0 0 0.1 3.6 0 0 0.2 3.7"
GPUMD = f'2\nlattice="{LATTICE}" energy=-1.5 properties=species:S:1:pos:R:3:force:R:3\n{ROWS}'


def rich(seed: int) -> ase.Atoms:
    """A structure that uses everything that the format can say."""
    rng = np.random.default_rng(seed)
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    atoms.rattle(0.1, rng=rng)
    results = {"energy": -1.25, "free_energy": -1.5, "forces": rng.normal(size=(4, 3)), "magmom": 0.5}
    results |= {"stress": rng.normal(size=6), "charges": rng.normal(size=4), "energies": rng.normal(size=4)}
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= {"name": "a name = 'quoted' [x]", "relax_id": "a1", "step": 3, "done": True, "pair": np.array([1, 2])}
    atoms.info |= {"nested": [{"a": 1}, "b"], "matrix": rng.normal(size=(2, 2)), "flags": [True, False], "uid": "007"}
    atoms.info |= {"virial": rng.normal(size=(3, 3)), "text": "1 2 three", "percent": 1e-3, "back": "a\\b"}
    atoms.set_array("final_positions", atoms.positions + 1)
    atoms.set_array("group", np.arange(4))
    atoms.set_array("kind", np.array(["a", "b", "c", "d"]))
    atoms.set_array("held", np.array([True, False, True, False]))
    atoms.set_constraint(FixAtoms([1]) if seed % 2 else [FixCartesian([2], (True, False, True))])
    return atoms


def test_everything_is_read_as_ase_reads_it():
    text = io.StringIO()
    written = [rich(1), rich(2), ase.Atoms("OH", [(0, 0, 0), (0, 0, 1)])]
    ase.io.write(text, written, format="extxyz")
    lines = text.getvalue().splitlines()
    expected = ase.io.read(io.StringIO(text.getvalue()), ":", format="extxyz")
    frames = list(extxyz.frames(iter(lines)))
    assert len(frames) == 3
    for mine, theirs in zip(frames, expected, strict=True):
        assert mine == theirs
        assert_same(mine.info, theirs.info)
        assert_same(mine.arrays, theirs.arrays)
        assert_same(getattr(mine.calc, "results", {}), getattr(theirs.calc, "results", {}))
        np.testing.assert_array_equal(held(mine), held(theirs))
    assert held(frames[0]).any() and held(frames[1]).any()


def assert_same(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        assert np.array_equal(mine[key], value), key
        assert isinstance(mine[key], np.ndarray) == isinstance(value, np.ndarray), key


def held(atoms: ase.Atoms) -> np.ndarray:
    from lamjax.system import fixed_components

    return fixed_components(atoms)


@pytest.mark.parametrize("between", ["", "\n", "\n\n", " \t\n", "\r\n"])
def test_white_space_between_frames_ends_nothing(tmp_path, between):
    path = tmp_path / "frames.xyz"
    path.write_bytes((between + between.join([GPUMD] * 3) + between).encode())
    assert len(data.read(path)) == 3


def test_keys_in_any_case_keep_cell_labels_and_virial(tmp_path):
    virial = np.array([[1.0, 0.2, 0.3], [0.2, 2.0, 0.4], [0.3, 0.4, 3.0]])
    numbers = " ".join(map(str, virial.ravel()))
    text = f'2\nLATTICE = "{LATTICE}" Energy=-1.5 VIRIAL="{numbers}" PROPERTIES=Species:s:1:POS:r:3:Force:r:3\n{ROWS}'
    (tmp_path / "train.xyz").write_text(text)
    (frame,) = data.read(tmp_path / "train.xyz")
    assert frame.system.pbc.all()
    np.testing.assert_array_equal(frame.system.cell, np.array(LATTICE.split(), float).reshape(3, 3))
    np.testing.assert_array_equal(frame.labels.weights, 1)
    assert frame.labels.energy == -1.5
    np.testing.assert_array_equal(frame.labels.forces[0], (0.1, 0.2, 0.3))
    np.testing.assert_array_equal(frame.labels.virial, virial)
    assert frame.keys == ("Energy", "Force", "VIRIAL")


@pytest.mark.parametrize(
    ("lattice", "pbc", "expected"),
    [
        ("", "", "FFF"),
        ("L", "", "TTT"),
        ("L", 'PBC="T F T"', "TFT"),
        ("L", "pbc=F", "FFF"),
        ("L", 'pbc="1 0 1"', "TFT"),
    ],
)
def test_periodicity(lattice, pbc, expected):
    text = f"2\n{lattice and f'lattice={{{LATTICE}}}'} {pbc} properties=species:S:1:pos:R:3:f:R:3\n{ROWS}"
    (atoms,) = extxyz.frames(iter(text.splitlines()))
    assert "".join("FT"[int(periodic)] for periodic in atoms.pbc) == expected


def test_lists_of_several_lengths():
    assert extxyz.header('a="_JSON [[1, 2], [3]]" b = "x y"') == {"a": [[1, 2], [3]], "b": "x y"}


def test_a_matrix_in_brackets_numbers_of_fortran_and_atomic_numbers():
    text = "1\nLattice=[[3, 0, 0], [0, 3, 0], [0, 0, 3]] Properties=Z:I:1:pos:R:3\n29 1.5D-01 -2.0d0 3e0\n"
    (atoms,) = extxyz.frames(iter(text.splitlines()))
    np.testing.assert_array_equal(atoms.cell, 3 * np.eye(3))
    np.testing.assert_array_equal(atoms.positions, [(0.15, -2.0, 3.0)])
    assert atoms.get_chemical_formula() == "Cu"


@pytest.mark.parametrize("number", ["-1.08D+01", "-1.08d1", "-.108D+2"])
def test_numbers_of_fortran_in_the_header(number):
    entries = extxyz.header(f'energy={number} stress="{number} 0.0D+00 1 2 3 4" name=2D3 of="1.0D x"')
    assert entries["energy"] == -10.8 and entries["stress"].tolist() == [-10.8, 0, 1, 2, 3, 4]
    assert entries["name"] == "2D3" and entries["of"] == "1.0D x"


def test_isotopes_of_hydrogen_keep_their_masses():
    text = "3\nProperties=species:S:1:pos:R:3\nD 0 0 0\nO 0 0 1\nT 0 0 2\n"
    (atoms,) = extxyz.frames(iter(text.splitlines()))
    assert atoms.numbers.tolist() == [1, 8, 1]
    np.testing.assert_allclose(atoms.get_masses(), [2.014, 15.999, 3.016], atol=1e-3)


WRONG = {
    "text between": (GPUMD + "and so on\n" + GPUMD, "line 5: expected the number of atoms of a frame, got 'and so on'"),
    "cut in rows": (GPUMD + GPUMD.rsplit("\n", 2)[0] + "\n", "line 5: 2 atoms are announced, 1 lines of atoms follow"),
    "cut in header": (GPUMD + "2\n", "line 5: 2 atoms are announced, 0 lines"),
    "blank row": (GPUMD.replace("Cu 1.8", "\nCu 1.8"), "line 4: 0 values, Properties announces 7"),
    "short row": (GPUMD.replace("-0.3\n", "\n"), "line 4: 6 values, Properties announces 7"),
    "long row": (GPUMD.replace("-0.3\n", "-0.3 1\n"), "line 4: 8 values, Properties announces 7"),
    "no number": (GPUMD.replace("1.8 0.1", "1.8 ***"), r"line 4: '\*\*\*' in column positions is not a number"),
    "no element": (GPUMD.replace("Cu 1.8", "Cu_2 1.8"), "line 4: 'Cu_2' is no chemical element"),
    "no positions": (GPUMD.replace(":pos:", ":place:"), "line 2: Properties is .* without elements"),
    "eight": (GPUMD.replace("0.2 3.7", "3.7"), "line 2: Lattice is .*; expected nine numbers"),
    "lengths": (
        GPUMD.replace('lattice="', 'lattice="5 5 5" old="'),
        r"line 2: Lattice is \[5, 5, 5\]; expected nine numbers: .*a 0 0 0 b 0 0 0 c",
    ),
    "twice": (GPUMD.replace("lattice", "Lattice=1 lattice"), "line 2: the key 'lattice' is there twice"),
    "energies": (
        GPUMD.replace("energy", "energy=-2 energy"),
        "line 2: the key 'energy' is there twice, as -2 and as -1.5",
    ),
    "pbc": (GPUMD.replace("energy", 'pbc="T F" energy'), "line 2: pbc is .*; expected three"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_named_with_its_line(tmp_path, case):
    text, message = WRONG[case]
    (tmp_path / "bad.xyz").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.xyz, frame \d: not readable as a structure file \(" + message):
        data.read(tmp_path / "bad.xyz")


SKIPPED = {"short row", "long row", "no number", "no element", "no positions", "eight", "lengths", "twice", "pbc"}


@pytest.mark.parametrize("case", sorted(SKIPPED))
def test_frames_after_one_that_cannot_be_read_are_read(tmp_path, case):
    """Whoever asks for what is wrong loses that frame alone, under its own number."""
    text, message = WRONG[case]
    (tmp_path / "bad.xyz").write_text(GPUMD + text + GPUMD)
    errors: list[ValueError] = []
    frames = list(data.iterate(tmp_path / "bad.xyz", on_error=errors.append))
    assert [frame.source for frame in frames] == ["bad.xyz frame 0", "bad.xyz frame 2"]
    (error,) = errors
    assert isinstance(error, data.FrameError) and error.source == "bad.xyz frame 1" and len(error.atoms) == 0
    number = int(re.search(r"line (\d)", message)[1]) + 4
    assert f"bad.xyz, frame 1: not readable as a structure file (line {number}: " in str(error)


def test_columns_that_a_plain_file_does_not_explain_are_named(tmp_path):
    (tmp_path / "plain.xyz").write_text("2\nfrom a code\n" + ROWS)
    with pytest.warns(UserWarning, match="atoms have more than the 4 values of a plain xyz file"):
        (frame,) = data.read(tmp_path / "plain.xyz")
    np.testing.assert_array_equal(frame.labels.weights, 0)


LAMMPS = "2\nAtoms. Timestep: 0\n1 0.0 0.0 0.0\n2 0.0 0.0 1.6\n"
TYPES = "2\nProperties=type:I:1:pos:R:3\n1 0.0 0.0 0.0\n2 0.0 0.0 1.6\n"


@pytest.mark.parametrize("text", [LAMMPS, TYPES])
def test_types_in_the_place_of_elements_are_no_atomic_numbers(tmp_path, text):
    """LAMMPS's `dump xyz` writes types: 1 is not hydrogen."""
    (tmp_path / "run.xyz").write_text(text)
    with pytest.raises(
        ValueError, match=r"line 3: '1' is no chemical element. Give the elements of types 1, 2.*--elements"
    ):
        data.read(tmp_path / "run.xyz")
    (frame,) = data.read(tmp_path / "run.xyz", options=data.ReadOptions(elements=("Si", "O")))
    assert frame.system.numbers.tolist() == [14, 8]
    with pytest.raises(ValueError, match="line 4: '2' is no chemical element"):
        data.read(tmp_path / "run.xyz", options=data.ReadOptions(elements=("Si",)))
