"""LAMMPS dumps: elements, units, frames that are not whole, and no energy from forces."""

import ase.build
import ase.io
import ase.units
import numpy as np
import pytest
from ase.calculators.lammps import convert

from lamjax import data
from lamjax.data import ReadOptions

OPTIONS = ReadOptions(elements=("Si", "O"))


def dump(columns="id type x y z fx fy fz", units="", rows=None, n=None, bounds="pp pp ff", step=0) -> str:
    values = {"id": (2, 1), "type": (2, 1), "x": (1.0, 0.5), "y": (2.0, 0.5), "z": (3.0, 0.5)}
    values |= {"fx": (0.1, -0.1), "fy": (0.2, -0.2), "fz": (0.3, -0.3), "vx": (1, 2), "vy": (0, 0), "vz": (0, 0)}
    values |= {"element": ("O", "Si"), "carbon": ("C", "C"), "mass": (15.999, 28.085), "typelabel": ("O", "Si")}
    names = columns.split()
    lines = [" ".join(str(values[name][k]) for name in names) for k in (0, 1)] if rows is None else rows
    head = [*units, "ITEM: TIMESTEP", str(step), "ITEM: NUMBER OF ATOMS", str(2 if n is None else n)]
    head += [f"ITEM: BOX BOUNDS {bounds}".rstrip(), "0 4", "0 5", "0 6"]
    return "\n".join([*head, f"ITEM: ATOMS {columns.replace('carbon', 'element')}", *lines]) + "\n"


def written(tmp_path, text: str, name="run.dump"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("name", ["run.dump", "dump.lammpstrj", "dump.0.custom"])
def test_forces_invent_no_energy(tmp_path, name):
    (frame, second) = data.read(written(tmp_path, dump() + dump(step=10), name), options=OPTIONS)
    np.testing.assert_array_equal(frame.labels.weights, [0, 1, 0])
    np.testing.assert_array_equal(frame.labels.forces, [(-0.1, -0.2, -0.3), (0.1, 0.2, 0.3)])  # by id
    np.testing.assert_array_equal(frame.system.numbers, [14, 8])
    np.testing.assert_array_equal(frame.system.positions, [(0.5, 0.5, 0.5), (1, 2, 3)])
    np.testing.assert_array_equal(frame.system.pbc, [True, True, False])
    np.testing.assert_array_equal(frame.system.cell, np.diag([4, 5, 6]))
    assert second.info["timestep"] == 10


@pytest.mark.parametrize("columns", ["id type x y z", "id type carbon x y z"])
def test_types_without_elements_are_refused(tmp_path, columns):
    with pytest.raises(
        ValueError, match=r"run.dump, frame 0: .*line 1: the dump has .* Give the elements .*--elements"
    ):
        data.read(written(tmp_path, dump(columns)))
    with pytest.raises(ValueError, match=r"an atom is of type 2, but elements are given for types 1 to 1 \(Si\)"):
        data.read(written(tmp_path, dump(columns)), options=ReadOptions(elements=("Si",)))
    (frame,) = data.read(written(tmp_path, dump(columns)), options=OPTIONS)
    np.testing.assert_array_equal(frame.system.numbers, [14, 8])


def test_frames_after_one_of_unknown_types_are_read(tmp_path):
    third = dump("id type x y z", rows=["1 1 0 0 0", "2 3 1 1 1"], step=1)
    path, errors = written(tmp_path, dump("id type x y z") + third + dump("id type x y z", step=2)), []
    frames = list(data.iterate(path, options=OPTIONS, on_error=errors.append))
    assert [frame.info["timestep"] for frame in frames] == [0, 2]
    assert len(errors) == 1 and "frame 1: not readable" in str(errors[0]) and "an atom is of type 3" in str(errors[0])


@pytest.mark.parametrize("column", ["element", "mass", "typelabel"])
def test_elements_that_the_dump_tells(tmp_path, column):
    (frame,) = data.read(written(tmp_path, dump(f"id type {column} x y z")))
    np.testing.assert_array_equal(frame.system.numbers, [14, 8])


def test_a_mass_of_no_element(tmp_path):
    text = dump("id mass x y z", rows=["1 28.085 0 0 0", "2 60.08 1 1 1"])
    with pytest.raises(ValueError, match="no element has the mass 60.08 amu"):
        data.read(written(tmp_path, text))


WRONG = {
    "rows": (
        dump() + dump(rows=["1 1 0 0 0 0 0 0"]),
        "frame 1: .*line 12: .* announces 2 atoms of 8 values, 1 such lines",
    ),
    "more rows": (dump(n=1), "frame 0: .*announces 1 atoms of 8 values, 2 such lines"),
    "cut row": (dump().rpartition(" ")[0], "frame 0: .*announces 2 atoms of 8 values, 1 such lines"),
    "header": (
        dump() + "ITEM: TIMESTEP\n10\nITEM: NUMBER OF ATOMS\n",
        "frame 1: .*line 12: .* has no BOX BOUNDS, ATOMS",
    ),
    "lj": (dump(units=["ITEM: UNITS", "lj"]), "frame 0: .*units 'lj' can't be converted"),
    "twice": (dump("id type x y z", rows=["7 1 0 0 0", "7 1 1 1 1"]), "frame 0: .*two atoms .* have the id 7"),
    "plane": (dump("id type x y", rows=["1 1 0 0", "2 1 1 1"]), "frame 0: .*columns id type x y: no positions x y z"),
    "mixed": (dump("id type x ys zu", rows=["1 1 0 0 0", "2 1 1 1 1"]), "frame 0: .*no positions x y z"),
    "flags": (dump(bounds=""), "frame 0: .*BOX BOUNDS does not say what is periodic"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_frames_that_are_not_whole_are_refused(tmp_path, case):
    text, message = WRONG[case]
    with pytest.raises(ValueError, match="run.dump, " + message):
        data.read(written(tmp_path, text), options=OPTIONS)


@pytest.mark.parametrize("units", [["ITEM: UNITS", "real"], ["ITEM: UNITS real"]])
def test_units_of_the_dump_are_converted(tmp_path, units):
    text = dump("id type x y z fx fy fz vx vy vz", units) + dump("id type x y z fx fy fz vx vy vz", step=1)
    frames = data.read(written(tmp_path, text), options=OPTIONS)
    assert len(frames) == 2
    for frame in frames:  # the item stands once, before the first frame
        kcal = ase.units.kcal / ase.units.mol
        np.testing.assert_allclose(frame.labels.forces[1], np.array([0.1, 0.2, 0.3]) * kcal, rtol=1e-4)
        expected = convert(1.0, "velocity", "real", "ASE") * 15.999
        np.testing.assert_allclose(frame.info["momenta"][1, 0], expected, rtol=1e-6)
    (frame,) = data.read(written(tmp_path, dump(units=["ITEM: UNITS", "electron"])), options=OPTIONS)
    np.testing.assert_allclose(frame.system.positions[1], np.array([1, 2, 3]) * ase.units.Bohr, rtol=1e-6)


def test_a_triclinic_box_and_windows_line_ends(tmp_path):
    """Against the cell that ASE reads; LAMMPS writes the bounds of the box that encloses the tilted one."""
    text = dump(bounds="xy xz yz pp pp pp").replace("0 4\n0 5\n0 6", "-0.5 4.7 -0.5\n0 5.9 0.7\n0 6 0.9")
    (frame,) = data.read(written(tmp_path, text.replace("\n", "\r\n")), options=OPTIONS)
    np.testing.assert_allclose(frame.system.cell, ase.io.read(written(tmp_path, text), format="lammps-dump-text").cell)
    np.testing.assert_allclose(frame.system.cell, [(4.0, 0, 0), (-0.5, 5.0, 0), (0.7, 0.9, 6)])


def test_a_note_where_the_dump_states_no_units(tmp_path):
    notes: list = []
    list(data.iterate(written(tmp_path, dump()), options=OPTIONS, on_remark=notes.append))
    assert [(note.severity, "metal" in note.what) for note in notes] == [("note", True)]


DATA = """LAMMPS data file

2 atoms
2 atom types

0.0 4.0 xlo xhi
0.0 5.0 ylo yhi
0.0 6.0 zlo zhi
{}
Atoms # atomic

1 1 0.5 0.5 0.5
2 2 1.0 2.0 3.0
"""


def test_types_of_a_data_file(tmp_path):
    """Its masses tell them; without masses 1 is not hydrogen."""
    masses = "\nMasses\n\n1 28.085 # Si\n2 15.999\n"
    for name in ("a.data", "a.lmp"):
        (frame,) = data.read(written(tmp_path, DATA.format(masses), name))
        assert frame.system.numbers.tolist() == [14, 8] and frame.system.pbc.all()
        np.testing.assert_array_equal(frame.system.positions, [(0.5, 0.5, 0.5), (1, 2, 3)])
        with pytest.raises(ValueError, match="2 types, and it has no Masses. Give the elements"):
            data.read(written(tmp_path, DATA.format(""), name))
        (frame,) = data.read(tmp_path / name, options=OPTIONS)
        assert frame.system.numbers.tolist() == [14, 8]
        with pytest.raises(ValueError, match="elements are given for types 1 to 1"):
            data.read(tmp_path / name, options=ReadOptions(elements=("Si",)))
    with pytest.raises(ValueError, match="line 13: no element has the mass 56 amu"):
        data.read(written(tmp_path, DATA.format(masses.replace("15.999", "56"))))


MASSES = "\nMasses\n\n1 28.085\n2 15.999\n"
DAMAGED = {
    "one id twice": (("\n2 2 1.0", "\n1 2 1.0"), "line 18: two atoms have the id 1"),
    "too few": (("\n2 2 1.0 2.0 3.0", ""), "line 15: 2 atoms are announced, 1 follow"),
    "too many": (("2.0 3.0\n", "2.0 3.0\n3 1 2 2 2\n"), "line 15: 2 atoms are announced, 3 follow"),
    "another type": (("\n2 2 1.0", "\n2 3 1.0"), "line 18: an atom is of type 3, and the file announces 2"),
    "no style": ((" # atomic\n\n1 1 0.5 0.5", "\n\n1 1 0.1 0.5 0.5"), "line 15: .*Write the style.*`Atoms # charge`"),
    "another style": (("# atomic", "# sphere"), "line 15: .*of style sphere and of 5 values a row.*Write the style"),
    "lj": (("LAMMPS data file", "LAMMPS data file, units = lj"), "line 1: units lj can't be converted"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_damaged_data_files_are_refused_with_their_line(tmp_path, case):
    change, message = DAMAGED[case]
    with pytest.raises(ValueError, match=message):
        data.read(written(tmp_path, DATA.format(MASSES).replace(*change), "a.data"))


def test_units_and_styles_of_data_files(tmp_path):
    """As write_data states them; deuterium is hydrogen, and a warning says that its mass is not used."""
    text = DATA.format(MASSES.replace("15.999", "2.014"))
    header = "LAMMPS data file via write_data, version 1, timestep = 0, units = electron"
    with pytest.warns(
        UserWarning, match="H has the mass 2.014 amu in the file, which is not used. Energies and forces"
    ):
        (frame,) = data.read(written(tmp_path, text.replace("LAMMPS data file", header), "a.data"))
    assert frame.system.numbers.tolist() == [14, 1]
    np.testing.assert_allclose(frame.system.positions[1], np.array([1, 2, 3]) * ase.units.Bohr, rtol=1e-6)
    np.testing.assert_allclose(np.diag(frame.system.cell), np.array([4, 5, 6]) * ase.units.Bohr, rtol=1e-6)
    charged = (
        text.replace("2.014", "15.999")
        .replace("# atomic\n\n1 1 ", "# charge\n\n1 1 0.4 ")
        .replace("\n2 2 1.0", "\n2 2 -0.4 1.0")
    )
    (frame,) = data.read(written(tmp_path, charged, "a.data"))
    np.testing.assert_array_equal(frame.system.positions, [(0.5, 0.5, 0.5), (1, 2, 3)])
