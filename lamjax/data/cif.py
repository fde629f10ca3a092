"""CIF files whose sites are wholly occupied; others describe no single structure."""

import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import ase
import numpy as np

from lamjax.data.text import attempted

SHOWN = 8  # sites that a message lists
SAME = 1e-3  # places whose fractional coordinates are nearer than this are one
FULL = 1e-3  # an occupancy nearer to 1 than this is 1
# space groups of two origin choices in the International Tables A
TWO_ORIGINS = {48, 50, 59, 68, 70, 85, 86, 88, 125, 126, 129, 130, 133, 134, 137, 138}
TWO_ORIGINS |= {141, 142, 201, 203, 222, 224, 227, 228}
RHOMBOHEDRAL = {146, 148, 155, 160, 161, 166, 167}  # of hexagonal axes in ASE's first setting
_SETTING_TAG = "_symmetry_space_group_setting"
# origin 1 or S, 2 or Z; axes hexagonal or rhombohedral
_SETTING = re.compile(r"(?i)(\S.*)(?:\s*:\s*(?=[12SZHR]$)|\s+(?=[SZHR]$))(.)")
_SYMMETRY = re.compile(r"_symmetry|_space_group")
_NAMES = {  # of CIF and mmCIF; ASE looks for the first of each before others
    "number": (
        *("_space_group.it_number", "_space_group_it_number", "_symmetry_int_tables_number"),
        *("_symmetry.int_tables_number",),
    ),
    "name": (
        *("_space_group_name_h-m_alt", "_symmetry_space_group_name_h-m", "_space_group.name_h-m_alt"),
        *("_symmetry.space_group_name_h-m", "_space_group_name_h-m_full", "_space_group.name_h-m_full"),
    ),
    "operations": (
        *("_space_group_symop_operation_xyz", "_space_group_symop.operation_xyz", "_symmetry_equiv_pos_as_xyz"),
        *("_symmetry_equiv.pos_as_xyz",),
    ),
}


def frames(file: TextIO, note: Callable[..., Any] | None = None) -> Iterator[ase.Atoms | ValueError]:
    """The structures of a CIF; of a data block that describes none the ValueError that says why.

    `note(severity, what, remedy)` is called for a space group that leaves the origin open.
    """
    from ase.io.cif import parse_cif

    for block in parse_cif(file):
        if block.has_structure():
            yield attempted(_structure, block, note)


def _structure(block: Any, note: Callable[..., Any] | None) -> ase.Atoms:
    """The structure of a data block; ValueError that lists the sites which are partly occupied or disordered."""
    block = _with_symmetry(block)
    _check_coordinates(block)
    if sites := _partial(block):
        raise ValueError(
            f"data block {block.name}: {len(sites)} sites are partly occupied or disordered: "
            f"{', '.join(sites[:SHOWN])}{', ...' if len(sites) > SHOWN else ''}. Choose an ordered structure (a "
            "supercell with whole atoms and vacancies) and write that."
        )
    atoms = _expanded(block)
    group = atoms.info["spacegroup"].no
    if note is not None and group in TWO_ORIGINS and not _tells_setting(block):
        what = f"data block {block.name}: space group {group} without its operations: its first origin is taken"
        remedy = "Look at the distances of atoms; write the operations to the file, or all atoms in P 1."
        note("warning", what, remedy)
    _check_places(block, atoms)
    atoms.info.pop("occupancy", None)  # of whole sites
    return atoms


def _with_symmetry(block: Any) -> Any:
    """The block with its symmetry under names that ASE looks for; ValueError where ASE would take it for P 1."""
    from ase.io.cif import CIFBlock

    tags = {key: value for key, value in block.items() if not (_SYMMETRY.match(key) and value in ("?", ".", ""))}
    known = {kind: next((tags[name] for name in names if name in tags), None) for kind, names in _NAMES.items()}
    tags |= {_NAMES[kind][0]: value for kind, value in known.items() if value is not None}
    if known["operations"] is not None and known["name"] is None:
        tags.setdefault(_NAMES["number"][0], 1)  # ASE wants a group; operations count
    if setting := _SETTING.fullmatch(str(known["name"])):
        tags[_NAMES["name"][0]] = setting[1].strip()
        if known["operations"] is None:
            tags[_SETTING_TAG] = 1 if setting[2].upper() in "1SH" else 2
    hall = next((tags[key] for key in tags if _SYMMETRY.match(key) and key.endswith("hall")), "P 1")
    if not any(value is not None for value in known.values()) and str(hall).replace(" ", "") != "P1":
        raise ValueError(
            f"data block {block.name}: the symmetry is told by the Hall symbol {hall!r} alone, which is not read. "
            "Write the operations (_space_group_symop_operation_xyz) or the space group, or all atoms in P 1."
        )
    return CIFBlock(block.name, tags)


def _check_coordinates(block: Any) -> None:
    """ValueError for a site of which no place is known."""
    columns = [_column(block, f"{kind}_{axis}") for kind in ("fract", "cartn") for axis in "xyz"]
    for name, *place in zip(_labels(block), *filter(None, columns), strict=False):
        if any(not isinstance(x, int | float) for x in place):
            raise ValueError(
                f"data block {block.name}: site {name} has the coordinates {place}, which are no numbers. Place the "
                "atom, or remove the site if the structure is whole without it."
            )


def _expanded(block: Any) -> ase.Atoms:
    """All atoms of the cell; ValueError for a symmetry that cannot be read."""
    from ase.io.cif import CIFBlock

    try:
        atoms = block.get_atoms(store_tags=False)
        of_hexagon = abs(atoms.cell.angles()[2] - 120) < 0.1
        if atoms.info["spacegroup"].no in RHOMBOHEDRAL and not _tells_setting(block) and not of_hexagon:
            atoms = CIFBlock(block.name, {**block, _SETTING_TAG: 2}).get_atoms(store_tags=False)
        return atoms
    except Exception as error:  # whatever its parser raises
        symmetry = {key: value for key, value in block.items() if _SYMMETRY.match(key) and isinstance(value, str | int)}
        raise ValueError(
            f"data block {block.name}: its atoms cannot be placed ({type(error).__name__}: {error}); its symmetry is "
            f"{symmetry or 'not stated'}. Repair that, or write all atoms of the cell in P 1."
        ) from error


def _tells_setting(block: Any) -> bool:
    """Whether the file says which origin or axes of the space group are meant, by a setting or by its operations."""
    return any(name in block for name in (_SETTING_TAG, *_NAMES["operations"]))


def _check_places(block: Any, atoms: ase.Atoms) -> None:
    """ValueError for two elements on one place, of which ASE would keep the first."""
    sites = block.get_unsymmetrized_structure()
    places, numbers = sites.get_scaled_positions(), sites.numbers
    for k in range(len(sites)) if len(set(numbers)) > 1 else ():
        orbit, _ = atoms.info["spacegroup"].equivalent_sites(places[k])
        others = np.flatnonzero(numbers != numbers[k])
        apart = places[others] - orbit[:, None]
        same = np.all(np.abs(apart - np.round(apart)) < SAME, axis=-1).any(axis=0)
        if same.any():
            shared = f"{sites.symbols[k]} and {sites.symbols[others[np.argmax(same)]]}"
            raise ValueError(
                f"data block {block.name}: {shared} are on one place {places[k].round(4).tolist()} (site {k + 1}): "
                "disordered, or a mistake. Choose an ordered structure, with one atom there, and write that."
            )


def _partial(block: Any) -> list[str]:
    """Labels of the sites that are not wholly occupied by one kind of atom, with what is wrong."""
    labels = _labels(block)
    n = len(labels)
    occupancies = _column(block, "occupancy") or [1.0] * n
    groups = _column(block, "disorder_group") or ["."] * n
    several = len({str(group) for group in groups} - {".", "?", "", "0", "0.0"}) > 1  # alternatives of one place
    partial = []
    for label, occupancy, group in zip(labels, occupancies, groups, strict=False):
        number = _number(occupancy)
        if number is not None and abs(number - 1) > FULL:
            partial.append(f"{label} (occupancy {number:g})")
        elif several and str(group) not in (".", "?", "", "0", "0.0"):
            partial.append(f"{label} (disorder group {group})")
        elif str(label).lower().startswith(("vac", "va_")) or str(label) in ("Va", "X"):
            partial.append(f"{label} (a vacancy)")
    return partial


def _labels(block: Any) -> list:
    return _column(block, "label") or _column(block, "type_symbol") or []


def _column(block: Any, name: str) -> list | None:
    """A column of the loop of sites, under its names in CIF and in mmCIF."""
    value = block.get(f"_atom_site_{name}", block.get(f"_atom_site.{name}"))
    return value if isinstance(value, list) or value is None else [value]


def _number(value: Any) -> float | None:
    """The number of "0.5" or "0.50(2)"; None where there is none ("?" and "." mean that nothing is said)."""
    try:
        return float(str(value).partition("(")[0])
    except ValueError:
        return None
