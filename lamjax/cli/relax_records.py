"""What `lamjax relax` writes: a record for each structure as it finishes, found again by a later run."""

from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import system, units
from lamjax.data import labels, records
from lamjax.data.records import append as append
from lamjax.relaxation import Relaxation
from lamjax.reports import files
from lamjax.system import System

OUTCOME = ("converged", "finite", "n_steps", "fmax")


def labelled(relaxed: Relaxation, info: dict[str, Any]) -> ase.Atoms:
    """The relaxed structure with its energy, forces and stress, and what became of it, as `Relaxation` calls it.

    That is `converged`, `finite`, `n_steps`, `fmax` and `truncated`. `info` is what else goes into its info; of arrays
    only `fixed` counts (as `data.read` finds it), which becomes constraints.
    """
    atoms = system.to_ase(relaxed.system)
    results = {"energy": float(relaxed.energy), "forces": np.asarray(relaxed.forces, np.float64)}
    if atoms.pbc.all():
        stress = units.virial_to_stress(np.asarray(relaxed.virial, np.float64), atoms.get_volume())
        results["stress"] = units.to_voigt(stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    if "fixed" in info:
        atoms.set_constraint(system.constraints(info["fixed"]))
    plain = {key: value for key, value in info.items() if np.ndim(value) == 0 and not _is_label(key)}
    atoms.info |= plain | {name: np.asarray(getattr(relaxed, name)).item() for name in (*OUTCOME, "truncated")}
    return atoms


def changes(start: System, end: System, cell: bool) -> dict[str, float]:
    """`moved`, the way (Å) of the atom that went farthest, without the strain; with a `cell`, its `volume_change`."""
    before, after = (np.asarray(x.cell, np.float64) for x in (start, end))
    strain = np.linalg.pinv(before) @ (after - before)  # 0 where the cell stayed; positions are not wrapped
    way = np.asarray(end.positions) - np.asarray(start.positions) @ (np.eye(3) + strain)
    found = {"moved": float(np.linalg.norm(way, axis=1).max())}
    if cell and np.linalg.det(before):
        found["volume_change"] = float(np.linalg.det(after) / np.linalg.det(before) - 1)
    return found


def known(path: Path, cut: bool = False) -> list[dict[str, Any]]:
    """The info of the whole records in a file; with `cut` a last one that was not written to its end is cut off.

    Raises ValueError for a file that `append` did not make.
    """
    infos, end = [], 0
    for info, end in records.whole_records(path, "lamjax relax"):  # noqa: B007
        if not {"source", *OUTCOME} <= info.keys():
            raise ValueError(f"{path}, record {len(infos)}: not written by `lamjax relax`. Name another --out.")
        infos.append(info)
    if cut:
        files.cut(path, end)
    return infos


def parts(path: Path) -> list[Path]:
    """The file of a run and those of the processes of a run."""
    numbered = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return [p for p in (path, *numbered) if p.exists() and (p == path or p.suffixes[-2][1:].isdigit())]


def part(path: Path, process: int) -> Path:
    """The file of one of several processes."""
    return path.with_name(f"{path.stem}.{process}{path.suffix}")


def _is_label(key: str) -> bool:
    """Whether a key of the start would be taken for a label of the end."""
    return labels.quantity(str(key)) is not None or labels.looks_like_label(key)
