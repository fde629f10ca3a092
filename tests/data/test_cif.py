"""Symmetry of CIF files: every way that files tell it, compared with the whole cell; what ASE would take for P 1."""

from fractions import Fraction

import ase
import ase.spacegroup
import numpy as np
import pytest

from lamjax import data

SITES = """loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""
SILICON = ase.spacegroup.crystal("Si", [(0, 0, 0)], spacegroup=227, cellpar=[5.43] * 3 + [90] * 3)
BISMUTH = ase.spacegroup.crystal("Bi", [(0, 0, 0.234)], spacegroup=166, cellpar=[4.55, 4.55, 11.9, 90, 90, 120])


def cif(symmetry: str, site: str, lengths=(5.43, 5.43, 5.43), angles=(90, 90, 90)) -> str:
    cell = [f"_cell_length_{x} {value}" for x, value in zip("abc", lengths, strict=True)]
    cell += [f"_cell_angle_{x} {value}" for x, value in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    return "\n".join(["data_x", *cell, symmetry, SITES + site]) + "\n"


def operations(name: str, number: int, setting: int = 1) -> str:
    """The loop of operations of a space group."""
    rows = []
    for turn, shift in ase.spacegroup.Spacegroup(number, setting).get_symop():
        parts = ["".join(f"{'+-'[int(c < 0)]}{x}" for c, x in zip(row, "xyz", strict=True) if c) for row in turn]
        rows.append(
            "'"
            + ",".join(f"{part}+{Fraction(x).limit_denominator(24)}" for part, x in zip(parts, shift, strict=True))
            + "'"
        )
    return "\n".join(["loop_", name, *rows])


def same_crystal(frame, expected: ase.Atoms) -> bool:
    """Whether a structure is the expected one, up to its origin: sorted distances of all atoms agree."""
    system = frame.system
    result = ase.Atoms(numbers=system.numbers, positions=system.positions, cell=system.cell, pbc=True)
    distances = [np.sort(atoms.repeat(2).get_all_distances(mic=True).ravel()) for atoms in (result, expected)]
    return distances[0].shape == distances[1].shape and np.allclose(*distances, atol=2e-3)


TOLD = {
    "operations without a group": (operations("_space_group_symop_operation_xyz", 227), "0 0 0"),
    "operations of mmCIF": (operations("_symmetry_equiv.pos_as_xyz", 227), "0 0 0"),
    "origin 2 by operations": (
        "_space_group_name_H-M_alt 'F d -3 m Z'\n" + operations("_symmetry_equiv_pos_as_xyz", 227, 2),
        "0.125 0.125 0.125",
    ),
    "origin 2 by a letter": ("_symmetry_space_group_name_H-M 'F d -3 m Z'", "0.125 0.125 0.125"),
    "origin 2 by a colon": ("_symmetry_space_group_name_H-M 'F d -3 m :2'", "0.125 0.125 0.125"),
    "origin 1 by a letter": ("_space_group_name_H-M_alt 'F d -3 m S'", "0 0 0"),
}
LEFT_OPEN = {
    "number": ("_space_group_IT_number 227", "0 0 0"),
    "unknown name": ("_symmetry_Int_Tables_number 227\n_symmetry_space_group_name_H-M ?", "0 0 0"),
    "full name": ("_space_group_name_H-M_full 'F d -3 m'", "0 0 0"),
    "name of mmCIF": ("_symmetry.space_group_name_H-M 'F d -3 m'", "0 0 0"),
}


def read(tmp_path, text: str):
    (tmp_path / "a.cif").write_text(text)
    (frame,) = data.read(tmp_path / "a.cif")
    return frame


@pytest.mark.parametrize("case", list(TOLD))
def test_symmetry_that_is_told(tmp_path, case):
    symmetry, place = TOLD[case]
    assert same_crystal(read(tmp_path, cif(symmetry, f"Si1 {place}")), SILICON)


@pytest.mark.parametrize("case", list(LEFT_OPEN))
def test_an_origin_that_is_left_open_is_told(tmp_path, case):
    symmetry, place = LEFT_OPEN[case]
    with pytest.warns(UserWarning, match="data block x: space group 227 without its operations: its first origin"):
        frame = read(tmp_path, cif(symmetry, f"Si1 {place}"))
    assert same_crystal(frame, SILICON)


@pytest.mark.parametrize(
    "name", ["R -3 m", "R -3 m H", "R -3 m :H", "R -3 m R", "R -3 m:R", "R -3 m with its own cell"]
)
def test_axes_of_a_rhombohedral_group(tmp_path, name):
    """Hexagonal or rhombohedral by the name, else by the cell."""
    if name.endswith(("H", "3 m")):
        site, lengths, angles = "Bi1 0 0 0.234", (4.55, 4.55, 11.9), (90, 90, 120)
        expected = BISMUTH
    else:
        length = np.hypot(4.55 / np.sqrt(3), 11.9 / 3)
        angle = 2 * np.degrees(np.arcsin(4.55 / 2 / length))
        site, lengths, angles = "Bi1 0.234 0.234 0.234", (length,) * 3, (angle,) * 3
        expected = ase.spacegroup.crystal("Bi", [(0.234,) * 3], spacegroup=166, setting=2, cellpar=[*lengths, *angles])
        assert abs(expected.get_volume() * 3 - BISMUTH.get_volume()) < 1e-9 and len(expected) == 2
    symmetry = f"_symmetry_space_group_name_H-M '{name.removesuffix(' with its own cell')}'"
    assert same_crystal(read(tmp_path, cif(symmetry, site, lengths, angles)), expected)


WRONG = {
    "Hall": ("_space_group_name_Hall '-F 4vw 2vw 3'", "Si1 0 0 0", "told by the Hall symbol '-F 4vw 2vw 3' alone"),
    "no group": ("_symmetry_space_group_name_H-M 'P 9 q'", "Si1 0 0 0", "its atoms cannot be placed .*P 9 q.*in P 1"),
    "no place": (
        "_symmetry_space_group_name_H-M 'P 1'",
        "Si1 0 0 0\nH1 ? ? ?",
        "site H1 has the coordinates .*no numbers",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_cannot_be_placed_is_refused(tmp_path, case):
    symmetry, sites, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"a\.cif, frame 0: .*data block x: .*{message}"):
        read(tmp_path, cif(symmetry, sites))


def test_blocks_after_one_that_cannot_be_used_are_read(tmp_path):
    cell = "_space_group_IT_number 1"
    blocks = [cif(cell, f"{label} 0 0 0").replace("data_x", f"data_{label}") for label in ("Si1", "Va1", "Cu1")]
    (tmp_path / "several.cif").write_text("\n".join(blocks))
    errors: list[ValueError] = []
    frames = list(data.iterate(tmp_path / "several.cif", on_error=errors.append))
    assert [frame.system.numbers.tolist() for frame in frames] == [[14], [29]]
    assert [frame.source for frame in frames] == ["several.cif frame 0", "several.cif frame 2"]
    assert len(errors) == 1 and "frame 1: not readable as a structure file (data block Va1: " in str(errors[0])
