"""Files of any name, packing and encoding; and what no potential can take: partly occupied sites."""

import bz2
import gzip
import lzma

import ase.build
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import data

NAMES = ["run@300K", "a*b?", "set[1]", "a#1", "a:b", "two words", "postgres", "mysql-1", "größe", "x@1:2", "[bold]"]
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def crystal() -> ase.Atoms:
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.02, seed=1)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((2, 3)))
    return atoms


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [".extxyz", ".traj", ".POSCAR"])
def test_any_name(tmp_path, name, kind):
    path = tmp_path / f"{name}{kind}"
    formats = {".extxyz": "extxyz", ".traj": "traj", ".POSCAR": "vasp"}
    with open(path, "wb" if kind == ".traj" else "w") as file:
        ase.io.write(file, crystal(), format=formats[kind])
    (frame,) = data.read(path)
    np.testing.assert_allclose(frame.system.positions, crystal().positions, atol=1e-7)


def test_a_data_base_of_ase(tmp_path):
    """A binary file that is no text, though ASE wants its name; also packed."""
    with ase.db.connect(tmp_path / "a@1.db") as base:
        base.write(crystal())
        base.write(crystal())
    (tmp_path / "b.db.gz").write_bytes(gzip.compress((tmp_path / "a@1.db").read_bytes()))
    for name in ("a@1.db", "b.db.gz"):
        assert [float(frame.labels.energy) for frame in data.read(tmp_path / name)] == [-1, -1]


RES = "TITL x\nCELL 1.0 5 5 5 90 90 90\nLATT -1\nSFAC Si O\nSi 1 0 0 0 {}\nO 2 0.5 0.5 0.5 {}\nEND\n"


def test_occupancies_of_shelx(tmp_path):
    for k, whole in enumerate([("1.0", "1.0"), ("11.00000", "1")]):
        (tmp_path / f"{k}.res").write_text(RES.format(*whole))
        (frame,) = data.read(tmp_path / f"{k}.res")
        assert frame.system.numbers.tolist() == [14, 8]
    (tmp_path / "part.res").write_text(RES.format("10.5", "0.25"))
    with pytest.raises(ValueError, match=r"line 5: 2 sites are partly occupied: Si \(0.5\), O \(0.25\)"):
        data.read(tmp_path / "part.res")


def test_a_name_with_an_at_sign_is_not_the_file_before_it(tmp_path):
    strained = crystal()
    strained.set_cell(1.1 * strained.cell, scale_atoms=True)
    ase.io.write(tmp_path / "POSCAR", crystal(), format="vasp")
    with open(tmp_path / "POSCAR@strained", "w") as file:
        ase.io.write(file, strained, format="vasp")
    (frame,) = data.read(tmp_path / "POSCAR@strained")
    np.testing.assert_allclose(frame.system.cell, strained.cell, atol=1e-9)


@pytest.mark.parametrize("packing", list(PACK))
@pytest.mark.parametrize("kind", ["extxyz", "traj", "vasp", "cif", "json"])
def test_packed_files_of_every_kind(tmp_path, packing, kind):
    plain = tmp_path / {"vasp": "POSCAR"}.get(kind, f"one.{kind}")
    ase.io.write(plain, crystal(), format=kind)
    path = tmp_path / f"{plain.name}{packing}"
    path.write_bytes(PACK[packing](plain.read_bytes()))
    (frame,) = data.read(path)
    assert sorted(frame.system.numbers.tolist()) == [11, 17] and frame.system.pbc.all()
    assert frame.source == f"{path.name} frame 0"


def test_a_packed_file_without_its_ending(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", crystal())
    (tmp_path / "b.extxyz").write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    assert len(data.read(tmp_path / "b.extxyz")) == 1


def test_other_archives_are_named(tmp_path):
    (tmp_path / "a.extxyz").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.extxyz.*a zip archive"):
        data.read(tmp_path / "a.extxyz")


ENCODINGS = {
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "latin-1": lambda text: text.encode("latin-1"),
    "Windows": lambda text: text.replace("\n", "\r\n").encode("latin-1"),
    "utf-16": lambda text: text.encode("utf-16"),
}


@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("kind", ["extxyz", "vasp", "cif"])
def test_encodings(tmp_path, encoding, kind):
    if (encoding, kind) == ("utf-16", "cif"):
        return
    path = tmp_path / {"vasp": "POSCAR"}.get(kind, f"one.{kind}")
    ase.io.write(path, crystal(), format=kind)
    text = path.read_text()
    name = "größe"
    if kind == "vasp":
        text = f"{name}\n" + text.partition("\n")[2]
    elif kind == "extxyz":
        text = text.replace("energy=", f"name={name} energy=")
    else:
        text = f"# {name}\n{text}"
    path.write_bytes(ENCODINGS[encoding](text))
    (frame,) = data.read(path)
    assert sorted(frame.system.numbers.tolist()) == [11, 17]
    if kind == "extxyz":
        assert frame.info["name"] == name and frame.labels.energy == -1


@pytest.mark.parametrize("text", ["\n", "   \n\t\n", "\ufeff\n"])
@pytest.mark.parametrize("name", ["a.extxyz", "POSCAR", "a.cif"])
def test_a_file_without_structures_is_not_called_empty(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name) as caught:
        data.read(tmp_path / name)
    assert "the file is empty" not in str(caught.value)


CIF = """data_test
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
{columns}
Na1 Na 0 0 0 {first}
Cl1 Cl 0.5 0.5 0.5 {second}
"""
OCCUPANCY = "_atom_site_occupancy"
GROUP = "_atom_site_disorder_group"


@pytest.mark.parametrize(
    ("columns", "first", "second", "message"),
    [
        (OCCUPANCY, "1", "0.5", r"1 sites .*: Cl1 \(occupancy 0.5\)"),
        (OCCUPANCY, "0.9(1)", "0.50(2)", r"2 sites .*: Na1 \(occupancy 0.9\), Cl1 \(occupancy 0.5\)"),
        (OCCUPANCY, "1.0", "0", r"Cl1 \(occupancy 0\)"),
        (GROUP, "1", "2", r"Na1 \(disorder group 1\), Cl1 \(disorder group 2\)"),
    ],
)
def test_partly_occupied_sites_of_a_cif_are_refused(tmp_path, columns, first, second, message):
    (tmp_path / "a.cif").write_text(CIF.format(columns=columns, first=first, second=second))
    with pytest.raises(ValueError, match=r"a\.cif.*partly occupied or disordered: .*" + message.partition(": ")[2]):
        data.read(tmp_path / "a.cif")


@pytest.mark.parametrize("place", ["0 0 0", "1 0 -1", "0.5 0.5 0.0002"])
def test_two_elements_on_one_place_of_a_cif_are_refused(tmp_path, place):
    """Also where only the symmetry brings them together; ASE keeps the first."""
    text = CIF.format(columns=GROUP, first=".", second=".").replace("'P 1'", "'F m -3 m'")
    (tmp_path / "a.cif").write_text(text + f"K1 K {place} .\n")
    with pytest.warns(UserWarning, match="equivalent"), pytest.raises(ValueError, match="Na and K are on one place"):
        data.read(tmp_path / "a.cif")
    (tmp_path / "a.cif").write_text(text)
    (frame,) = data.read(tmp_path / "a.cif")
    assert frame.system.n_atoms == 8


@pytest.mark.parametrize(
    ("columns", "first", "second"),
    [(OCCUPANCY, "1", "1.0000"), (OCCUPANCY, "1.0(0)", "?"), (OCCUPANCY, ".", "1"), (GROUP, ".", "1")],
)
def test_whole_sites_of_a_cif_are_read(tmp_path, columns, first, second):
    (tmp_path / "a.cif").write_text(CIF.format(columns=columns, first=first, second=second))
    (frame,) = data.read(tmp_path / "a.cif")
    np.testing.assert_array_equal(frame.system.numbers, [11, 17])


def test_occupancies_of_other_formats(tmp_path):
    atoms = crystal()
    atoms.set_array("occupancy", np.array([1.0, 0.5]))
    ase.io.write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(ValueError, match=r"frame 0: 1 sites are partly occupied: atom 1 \(0.5\)"):
        data.read(tmp_path / "a.extxyz")
    atoms = crystal()
    atoms.info["occupancy"] = {"0": {"Na": 0.5, "K": 0.5}, "1": {"Cl": 1}}
    with pytest.raises(ValueError, match=r"1 sites are partly occupied: 0 \(Na 0.5, K 0.5\)"):
        data.from_atoms(atoms)
    for whole in (np.ones(2), np.zeros(2)):  # nobody filled the column of a PDB file
        atoms = crystal()
        atoms.set_array("occupancy", whole)
        data.from_atoms(atoms)


@pytest.mark.parametrize(("name", "form"), [("POSCAR", "vasp"), ("a.xsf", "xsf"), ("a.gen", "gen")])
def test_a_cut_file_is_named_with_its_format(tmp_path, name, form):
    """Of a format that ASE reads: wherever the cut is, the message says what the file was taken for."""
    path = tmp_path / name
    ase.io.write(path, ase.build.bulk("Si", cubic=True), format=form)
    lines = path.read_text().splitlines()
    remarks = []
    for kept in range(2, len(lines)):
        path.write_text("\n".join(lines[:kept]) + "\n")
        try:
            data.read(path)
        except ValueError as error:
            remarks.append(str(error))
    assert remarks and all(
        str(path) in message and "Was the copy cut short" in message or form in message for message in remarks
    )
