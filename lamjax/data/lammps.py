"""LAMMPS text dumps (frames checked to be whole, in their units) and data files, with elements for their types."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ase
import ase.data
import numpy as np
from ase.calculators.lammps import unitconvert

from lamjax.data.symbols import ISOTOPE_MASSES
from lamjax.data.text import attempted

MASS = 0.1  # amu; a mass that is farther from that of every element is none of them
_NAMES = ("element", "typelabel", "mass")  # columns that tell the elements
_ATOMS = re.compile(r"\s*Atoms\s*(?:#\s*(\w+).*)?$")
_POSITIONS = ("", "s", "u", "su")  # endings of x: in the box, in units of it, unwrapped, both
_UNITS = {name for name in unitconvert.UNITSETS if name not in ("ASE", "lj")}
_STYLES = {"atomic": (1, 5), "charge": (1, 6), "full": (2, 7)}  # column of the type, width without flags of images
_STYLES |= dict.fromkeys(("molecular", "bond", "angle"), (2, 6))


def frames(
    lines: Iterator[str], elements: Sequence[str] = (), note: Callable[..., Any] | None = None
) -> Iterator[ase.Atoms | ValueError]:
    """The structures of a dump, forces and velocities in eV, Å and ASE's time; a dump says nothing of energies.

    `elements` are those of types 1, 2, ...; without, the dump must have a column `element` or `mass`. Units are those
    of `ITEM: UNITS`, else LAMMPS's metal. Of a frame whose elements are not known the ValueError that names its line.
    Raises ValueError for one that is not whole.
    """
    units = None
    for number, sections in _sections(lines):
        if "UNITS" in sections:
            units = (sections["UNITS"][0].split() or sections["UNITS"][1])[0].lower()
            if units not in _UNITS:
                known = ", ".join(sorted(_UNITS))
                raise ValueError(f"line {number}: units {units!r} can't be converted to eV and Å. Known: {known}.")
        yield attempted(_frame, number, sections, units or "metal", elements)
    if units is None and note is not None:
        note("note", "no ITEM: UNITS: taken as LAMMPS's metal units (Å, eV/Å)", "If the run had others, add the item.")


def data_file(lines: Iterator[str], elements: Sequence[str] = ()) -> ase.Atoms:
    """The structure of a LAMMPS data file; its types are `elements`, or told by their masses.

    Units are those that its first line states, else LAMMPS's metal. ValueError that names the line of what is damaged.
    """
    from ase.io.lammpsdata import read_lammps_data

    every = list(lines)
    units = _stated_units(every[0])
    n_types = _announced(every, "atom types")
    masses = {kind: (unitconvert.convert(m, "mass", units, "ASE"), k) for kind, (m, k) in _masses(every)}
    if elements and n_types <= len(elements):
        symbols = list(elements[:n_types])
    elif not elements and n_types and all(k in masses for k in range(1, n_types + 1)):
        symbols = [_of_mass(*masses[k]) for k in range(1, n_types + 1)]
    else:
        given = f"elements are given for types 1 to {len(elements)}" if elements else "it has no Masses"
        raise ValueError(
            f"line 1: a LAMMPS data file of {n_types} types, and {given}. Give the elements of types 1, 2, ... "
            "(--elements Si,O; elements of ReadOptions)."
        )
    style = _check_rows(every, n_types)
    numbers = {k: ase.data.atomic_numbers[symbol] for k, symbol in enumerate(symbols, 1)}
    return read_lammps_data(io.StringIO("\n".join(every) + "\n"), Z_of_type=numbers, units=units, atom_style=style)


def _stated_units(first: str) -> str:
    """The units that the first line of a data file states, as write_data writes them; metal where it states none."""
    stated = re.search(r"\bunits\s*=?\s*(\w+)", first)
    if stated is None or stated[1] in _UNITS:
        return stated[1] if stated else "metal"
    if stated[1] == "lj":
        known = ", ".join(sorted(_UNITS))
        raise ValueError(f"line 1: units lj can't be converted to eV and Å. Known: {known}.")
    return "metal"


def _announced(lines: list[str], what: str) -> int:
    """The number before `what` in the head of a data file, 0 where there is none."""
    return next((int(m[1]) for line in lines if (m := re.match(rf"\s*(\d+)\s+{what}\s*(#.*)?$", line))), 0)


def _check_rows(lines: list[str], n_types: int) -> str:
    """The style of the section Atoms; ValueError where its rows are not those that the head announces."""
    start, style, rows = _atom_rows(lines)
    n = _announced(lines, "atoms")
    if len(rows) != n:
        damaged = "it is cut short or damaged"
        raise ValueError(f"line {start}: {n} atoms are announced, {len(rows)} follow in the section Atoms: {damaged}.")
    widths = {len(words) for _, words in rows}
    style = style or {5: "atomic", 8: "atomic", 7: "full", 10: "full"}.get(min(widths, default=0), "")
    column, width = _STYLES.get(style, (0, 0))
    if not width or not widths <= {width, width + 3}:
        shown = f"of style {style} and " if style else ""
        raise ValueError(
            f"line {start}: the section Atoms is {shown}of {', '.join(map(str, sorted(widths)))} values a row, which "
            f"do not say where positions are. Write the style behind its name, as in `Atoms # charge`; known are "
            f"{', '.join(_STYLES)}."
        )
    ids: set[str] = set()
    for number, words in rows:
        kind = words[column]
        if words[0] in ids:
            raise ValueError(f"line {number}: two atoms have the id {words[0]}: damaged. Remove one of them.")
        if kind.isdigit() and not 1 <= int(kind) <= n_types:
            raise ValueError(f"line {number}: an atom is of type {kind}, and the file announces {n_types} atom types.")
        ids.add(words[0])
    return style


def _atom_rows(lines: list[str]) -> tuple[int, str, list[tuple[int, list[str]]]]:
    """(line of the section Atoms, its style or "", (line number, words) of its rows)."""
    start, style = next(
        ((k, m[1] or "") for k, line in enumerate(lines) if (m := _ATOMS.match(line))), (len(lines), "")
    )
    rows = []
    for number, line in enumerate(lines[start + 1 :], start + 2):
        words = line.partition("#")[0].split()
        if words and not words[0].isdigit():
            break
        rows += [(number, words)] if words else []
    return start + 1, style, rows


def _masses(lines: list[str]) -> Iterator[tuple[int, tuple[float, int]]]:
    """(type, (mass, line number)) of the section Masses."""
    inside = False
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words and not words[0].isdigit():
            inside = words == ["Masses"]
        elif inside and len(words) == 2:
            yield int(words[0]), (float(words[1]), number)


def _sections(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, tuple[str, list[str]]]]]:
    """(line number, {item: (rest of its line, lines)}) of every frame."""
    sections: dict[str, tuple[str, list[str]]] = {}
    start, into = 1, None
    for number, line in enumerate(lines, 1):
        if line.startswith("ITEM:"):
            name, rest = _item(line, number)
            if name in sections or ("ATOMS" in sections):
                yield start, _checked_sections(sections, start)
                sections, start = {}, number
            into = sections.setdefault(name, (rest, []))[1]
        elif line.strip():
            if into is None:
                raise ValueError(f"line {number}: expected ITEM: of a LAMMPS dump, got {line[:60]!r}.")
            into.append(line)
    if sections:
        yield start, _checked_sections(sections, start)


def _item(line: str, number: int) -> tuple[str, str]:
    rest = line.removeprefix("ITEM:").strip()
    for name in ("TIMESTEP", "UNITS", "TIME", "NUMBER OF ATOMS", "NUMBER OF ENTRIES", "BOX BOUNDS", "ATOMS"):
        if re.match(rf"{name}\b", rest):
            return name, rest.removeprefix(name).strip()
    return rest, ""


def _checked_sections(sections: dict[str, tuple[str, list[str]]], start: int) -> dict[str, tuple[str, list[str]]]:
    """The sections of a frame; ValueError if something of it is missing."""
    missing = [name for name in ("TIMESTEP", "NUMBER OF ATOMS", "BOX BOUNDS", "ATOMS") if name not in sections]
    lacking = [name for name in sections if name in ("TIMESTEP", "NUMBER OF ATOMS") and not sections[name][1]]
    if missing or lacking or len(sections["BOX BOUNDS"][1]) != 3:
        what = ", ".join(missing or lacking or ["three lines of BOX BOUNDS"])
        raise ValueError(f"line {start}: the frame from here has no {what}: it is cut short, or no dump of atoms.")
    n, rows = int(sections["NUMBER OF ATOMS"][1][0]), sections["ATOMS"][1]
    width = len(sections["ATOMS"][0].split())
    short = [row for row in rows if len(row.split()) != width]
    if len(rows) != n or short:
        raise ValueError(
            f"line {start}: the frame from here announces {n} atoms of {width} values, {len(rows) - len(short)} such "
            "lines follow: it is cut short or damaged. Remove it."
        )
    _check_columns(sections["ATOMS"][0].split(), rows, start)
    if len(sections["BOX BOUNDS"][0].split()) < 3:
        raise ValueError(f"line {start}: BOX BOUNDS does not say what is periodic. Write `pp pp pp` (or ff) behind it.")
    return sections


def _check_columns(columns: list[str], rows: list[str], start: int) -> None:
    """ValueError without three columns of one kind of positions, and for two atoms of one id."""
    if not any(all(axis + kind in columns for axis in "xyz") for kind in _POSITIONS):
        raise ValueError(
            f"line {start}: the atoms have the columns {' '.join(columns)}: no positions x y z (nor xs, xu, xsu ...). "
            "Add x y z to the `dump custom` command."
        )
    ids = [row.split()[columns.index("id")] for row in rows] if "id" in columns else []
    if len(set(ids)) < len(ids):
        twice = next(name for k, name in enumerate(ids) if name in ids[:k])
        raise ValueError(f"line {start}: two atoms of the frame from here have the id {twice}: damaged. Remove it.")


def _frame(number: int, sections: dict, units: str, elements: Sequence[str]) -> ase.Atoms:
    from ase.io.lammpsrun import read_lammps_dump_text

    columns = sections["ATOMS"][0].split()
    rows = [row.split() for row in sections["ATOMS"][1]]
    symbols = _symbols(columns, rows, elements, number)
    kept = [k for k, name in enumerate(columns) if name not in _NAMES]
    text = [
        *("ITEM: TIMESTEP", sections["TIMESTEP"][1][0], "ITEM: NUMBER OF ATOMS", str(len(rows))),
        *(f"ITEM: BOX BOUNDS {sections['BOX BOUNDS'][0]}", *sections["BOX BOUNDS"][1]),
        " ".join(["ITEM: ATOMS", *(columns[k] for k in kept), "element"]),
        *(" ".join([*(row[k] for k in kept), symbol]) for row, symbol in zip(rows, symbols, strict=True)),
    ]
    read: Any = read_lammps_dump_text
    (atoms,) = read(io.StringIO("\n".join(text) + "\n"), index=":", units=units)
    if atoms.calc is not None:
        atoms.calc.results.pop("energy", None)  # ASE's 0 eV beside the forces is no energy
    return atoms


def _symbols(columns: list[str], rows: list[list[str]], elements: Sequence[str], number: int) -> list[str]:
    """The element of every atom: by `elements` of its type, by the dump's own column, or by its mass."""
    have = {name: [row[k] for row in rows] for k, name in enumerate(columns) if name in ("type", *_NAMES)}
    types = set(have.get("type", ()))
    if elements and "type" in have:
        if wrong := sorted(t for t in types if not t.isdigit() or not 1 <= int(t) <= len(elements)):
            given = f"elements are given for types 1 to {len(elements)} ({', '.join(elements)})"
            raise ValueError(f"line {number}: an atom is of type {wrong[0]}, but {given}.")
        return [elements[int(t) - 1] for t in have["type"]]
    named = have.get("element", have.get("typelabel", []))
    if named and set(named) <= set(ase.data.chemical_symbols[1:]) and not (set(named) == {"C"} and len(types) > 1):
        return named  # C for every type is what LAMMPS writes where no elements are given
    if "mass" in have:
        return [_of_mass(float(mass), number) for mass in have["mass"]]
    labels = f"elements {', '.join(sorted(set(named))[:8])}" if named else f"types {', '.join(sorted(types)[:8])}"
    raise ValueError(
        f"line {number}: the dump has {labels}, which do not say what its atoms are. Give the elements of types 1, 2, "
        "... (--elements Si,O; elements of ReadOptions), or write the dump with `dump_modify ... element`."
    )


def _of_mass(mass: float, number: int) -> str:
    if any(abs(isotope - mass) <= MASS for isotope in ISOTOPE_MASSES.values()):
        return "H"
    z = int(np.nanargmin(np.abs(ase.data.atomic_masses[1:] - mass))) + 1
    if abs(ase.data.atomic_masses[z] - mass) > MASS:
        raise ValueError(f"line {number}: no element has the mass {mass:g} amu. Give those of the types (--elements).")
    return ase.data.chemical_symbols[z]
