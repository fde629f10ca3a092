"""Output of `lamjax relax`: a record for each structure as it finishes, found again by a later run; at the end all
of them in the order of the structures, with a table."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from jaxtyping import Array, PyTree

from lamjax import files, lattice, system, units
from lamjax.data import records
from lamjax.data.records import append as append
from lamjax.dynamics.restart import digest
from lamjax.potential import Potential
from lamjax.relaxation import Relaxation, RelaxConfig
from lamjax.system import System

OUTCOME = ("converged", "finite", "n_steps", "fmax")
MADE = ("relaxed_by", "relaxed_to", "relaxed_from")  # names of the model and of the start, and the settings
OWN = {*OUTCOME, *MADE, "truncated", "moved", "volume_change", "failed", "error"}  # a start may be another run's end
COLUMNS = ("number", "name", "steps", "converged", "fmax", "energy", "volume_change", "moved", "error")
NOT_YET = "not relaxed yet: --resume goes on"


class Place(NamedTuple):
    """A record in a file."""

    path: Path
    first: int  # byte
    end: int
    info: dict[str, Any]


def labelled(relaxed: Relaxation, info: dict[str, Any]) -> ase.Atoms:
    """The relaxed structure with its energy, forces and stress, and what became of it, as `Relaxation` calls it.

    That is `converged`, `finite`, `n_steps`, `fmax` and `truncated`. `info` is what else goes into its info; of arrays
    only `fixed` counts (as `data.read` finds it), which becomes constraints.
    """
    atoms = system.to_ase(relaxed.system, relaxed)
    if "fixed" in info:
        atoms.set_constraint(system.constraints(info["fixed"]))
    outcome = {name: np.asarray(getattr(relaxed, name)).item() for name in (*OUTCOME, "truncated")}
    atoms.info |= records.plain_info(info) | outcome
    return atoms


def unrelaxed(start: System | ase.Atoms, info: dict[str, Any], error: str) -> ase.Atoms:
    """The record of a structure that could not be relaxed: the start, `failed`, with the `error` and no energy."""
    atoms = system.to_ase(start) if isinstance(start, System) else start
    kept = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    outcome = {"converged": False, "finite": False, "n_steps": 0, "fmax": np.nan, "failed": True, "error": error}
    kept.info = records.plain_info(info | outcome)
    if "fixed" in info:
        kept.set_constraint(system.constraints(info["fixed"]))
    return kept


def changes(start: System, end: System, cell: bool) -> dict[str, float]:
    """`moved`, the way (Å) of the atom that went farthest, without the strain; with a `cell`, its `volume_change`."""
    before, after = (np.asarray(x.cell, np.float64) for x in (start, end))
    strain = lattice.deformation(after, before)  # 0 where the cell stayed; positions are not wrapped
    moved = np.asarray(end.positions) - np.asarray(start.positions) @ (np.eye(3) + strain)
    measures = {"moved": float(np.linalg.norm(moved, axis=1).max())}
    if cell and lattice.volume(before):
        measures["volume_change"] = float(lattice.volume(after) / lattice.volume(before) - 1)
    return measures


def known(path: Path, cut: bool = False) -> list[Place]:
    """The whole records in a file; with `cut` a last one that was not written to its end is cut off.

    Raises ValueError for a file that `append` did not make.
    """
    places, end = [], 0
    for info, end_ in records.whole_records(path, "lamjax relax"):
        if not {"source", *OUTCOME} <= info.keys():
            raise ValueError(f"{path}, record {len(places)}: not written by `lamjax relax`. Name another --output.")
        places.append(Place(path, end, end_, info))
        end = end_
    if cut:
        files.cut(path, end)
    return places


def first(path: Path) -> dict[str, Any]:
    """The info of the first record in a file, empty without one; ValueError for a file that `append` did not make."""
    info = next((info for info, _ in records.whole_records(path, "lamjax relax")), {})
    if info and not {"source", *OUTCOME} <= info.keys():
        raise ValueError(f"{path}: not written by `lamjax relax`.")
    return info


def panels(infos: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """{quantity: values} of what a picture shows beside the steps: how far atoms moved, and volumes changed."""
    kinds = {"moved": (1, "way of the atom that went farthest (Å)"), "volume_change": (100, "volume change (%)")}
    return {
        label: [factor * float(info[key]) for info in infos]
        for key, (factor, label) in kinds.items()
        if infos and all(key in info for info in infos)
    }


def n_atoms(place: Place) -> int:
    """The number of atoms of a record."""
    with open(place.path, "rb") as file:
        file.seek(place.first)
        return int(file.readline())


def relaxed(paths: Iterable[Path], cut: Path | None = None) -> dict[str, Place]:
    """The records of files by their source, without those that stand for what could not be relaxed."""
    places = (place for path in paths for place in known(path, path == cut))
    return {str(place.info["source"]): place for place in places if not place.info.get("failed")}


def model_name(potential: Potential, params: PyTree) -> str:
    """A name for a model, its numbers and its head."""
    return f"{potential.head} {digest(potential, params)[:12]}"


def start_name(start: System, fixed: Array | None) -> str:
    """A name for a structure and what of it is fixed."""
    name = hashlib.blake2b(digest_size=6)
    for array in (*start, fixed):
        name.update(b"-" if array is None else f"{np.shape(array)}".encode() + np.ascontiguousarray(array).tobytes())
    return f"{start.n_atoms} atoms {name.hexdigest()}"  # digits alone would be read as a number


def settings_text(config: RelaxConfig, precision: str) -> str:
    """The settings of a relaxation as text: "fmax 0.02; max_steps 500; ..."."""
    cell = "fixed" if config.cell is None else f"relaxing at {config.cell.pressure / units.GPA:g} GPa"
    kept = "" if config.cell is None else f" keeping {config.cell.keep}"
    most = f"fmax {config.fmax:g}; max_steps {config.max_steps}"
    return f"{most}; cell {cell}{kept}; precision {precision}; minimiser {config.minimiser.type}"


def check_made(place: Place, made: Mapping[str, str]) -> None:
    """ValueError, with what differs, unless a record was `made` with the model, settings and start of this run.

    An older record says nothing of them and is taken.
    """
    made = {key: made.get(key, "nothing") for key in MADE}
    known = {key: str(place.info.get(key, made[key])) for key in MADE}
    if "minimiser" not in known["relaxed_to"]:  # of a time when there was one minimiser
        known["relaxed_to"] += "; minimiser fire"
    where = f"{place.path}, {place.info['source']}"
    remedy = "Give the same again, or name another --out for this run."
    if known["relaxed_to"] != made["relaxed_to"]:
        pairs = zip(known["relaxed_to"].split("; "), made["relaxed_to"].split("; "), strict=False)
        differences = "; ".join(f"{old}, now {new}" for old, new in pairs if old != new)
        raise ValueError(f"{where} was relaxed with other settings: {differences}. {remedy}")
    if known["relaxed_by"] != made["relaxed_by"]:
        differences = f"{known['relaxed_by']}, now {made['relaxed_by']}"
        raise ValueError(f"{where} was relaxed with another model or head ({differences}). {remedy}")
    if known["relaxed_from"] != made["relaxed_from"]:
        raise ValueError(f"{where} has changed since it was relaxed: other atoms, cell or constraints. {remedy}")


def sort(out: Path, sources: Mapping[str, int], places: Mapping[str, Place], failed: Mapping[str, ase.Atoms]) -> None:
    """The records in the order of the `sources` {name: number}, each of the `failed` ones in its place.

    What was relaxed of other sources follows. The file is as it was, with all that is in it, until it is written anew.
    """
    with files.replacing(out) as temporary, open(temporary, "wb") as file:
        for source, number in sources.items():
            if source in places:
                file.write(_numbered(places[source], number))
            elif source in failed:
                file.write(_text(failed[source]))
        for place in (place for source, place in places.items() if source not in sources):
            file.write(_bytes(place))


def write_table(path: Path, sources: Mapping[str, int], places: Mapping[str, Place], errors: Mapping[str, str]) -> None:
    """CSV with a line for each of the `sources`, in their order; eV, eV/Å, Å; empty where there is no such number."""
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    for source, number in sources.items():
        row = {"number": number, "name": source, "converged": False}
        if source in places:
            info = places[source].info
            row |= {key: info[key] for key in COLUMNS if key in info and key not in ("number", "name")}
            row |= {"steps": info["n_steps"]}
        else:
            row |= {"error": errors.get(source, NOT_YET)}
        rows.writerow(row)
    files.write_atomically(path, text.getvalue().encode())


def parts(path: Path) -> list[Path]:
    """The file of a run and those of the processes of a run."""
    numbered = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return [p for p in (path, *numbered) if p.exists() and (p == path or p.suffixes[-2][1:].isdigit())]


def part(path: Path, process: int) -> Path:
    """The file of one of several processes."""
    return path.with_name(f"{path.stem}.{process}{path.suffix}")


def atoms_of(place: Place) -> ase.Atoms:
    """The structure of a record."""
    import ase.io

    atoms: Any = ase.io.read(io.StringIO(_bytes(place).decode()), format="extxyz")
    return atoms


def _text(atoms: ase.Atoms) -> bytes:
    text = io.StringIO()
    append(text, atoms)
    return text.getvalue().encode()


def _bytes(place: Place) -> bytes:
    with open(place.path, "rb") as file:
        file.seek(place.first)
        return file.read(place.end - place.first)


def _numbered(place: Place, number: int) -> bytes:
    """A record with its `number`, which is another one than it was written with if other files were given then."""
    content = _bytes(place)
    if place.info.get("number") == number:
        return content
    first, comment, rest = content.split(b"\n", 2)
    return b"\n".join((first, re.sub(rb"(^| )number=\d+", rb"\g<1>number=%d" % number, comment), rest))
