"""CIF files whose sites are wholly occupied; others describe no single structure."""

from collections.abc import Iterator
from typing import Any, TextIO

import ase
import numpy as np

SHOWN = 8  # sites that a message lists
SAME = 1e-3  # places whose fractional coordinates are nearer than this are one
FULL = 1e-3  # an occupancy nearer to 1 than this is 1


def frames(file: TextIO) -> Iterator[ase.Atoms]:
    """The structures of a CIF; ValueError that lists the sites which are partly occupied or disordered."""
    from ase.io.cif import parse_cif

    for block in parse_cif(file):
        if not block.has_structure():
            continue
        if sites := _partial(block):
            raise ValueError(
                f"data block {block.name}: {len(sites)} sites are partly occupied or disordered: "
                f"{', '.join(sites[:SHOWN])}{', ...' if len(sites) > SHOWN else ''}. Choose an ordered structure (a "
                "supercell with whole atoms and vacancies) and write that."
            )
        atoms = block.get_atoms(store_tags=False)
        _check_places(block, atoms)
        atoms.info.pop("occupancy", None)  # of whole sites
        yield atoms


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
    labels = _column(block, "label") or _column(block, "type_symbol") or []
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
