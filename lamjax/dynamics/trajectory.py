"""Trajectories in files: every kind can be cut to a step, so that a run that was killed goes on without a seam."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import Bool

from lamjax import files, units
from lamjax.dynamics import hdf5
from lamjax.dynamics.records import Record
from lamjax.system import MASSES, System, constraints, to_ase

SUFFIXES = (".extxyz", ".xyz", ".traj", ".h5", ".hdf5")
ULM_HEADER = 48  # bytes at the begin of an ASE trajectory that change when a frame is added


class Scene(NamedTuple):
    """The constants of a trajectory: structure, fixed components, time step."""

    system: System  # of the start
    fixed: Bool[np.ndarray, "n_atoms 3"]
    timestep: float  # fs


class Writer(NamedTuple):
    """A file that grows. What `mark` gives is plain data; `cut` makes the file as it was then."""

    append: Callable[[Record], None]
    mark: Callable[[], dict[str, Any]]
    cut: Callable[[dict[str, Any]], None]


def frames(scene: Scene, seen: Record) -> Iterator[ase.Atoms]:
    """The steps of a record as ASE structures: unwrapped positions, momenta, energy, forces, stress, constraints.

    The stress is that of the potential, as ASE has it (`get_stress(include_ideal_gas=True)` adds that of the motion,
    as `Record.stress` does). `info` holds `step` and `time` (ps).
    """
    mass = MASSES[np.asarray(scene.system.numbers)]
    held = constraints(np.asarray(scene.fixed))
    for k, step in enumerate(seen.step.tolist()):
        atoms = to_ase(scene.system._replace(positions=seen.positions[k], cell=seen.cell[k]))
        momenta = np.asarray(seen.momenta[k], np.float64)
        atoms.set_momenta(momenta)
        results = {"energy": float(seen.potential_energy[k]), "forces": np.asarray(seen.forces[k], np.float64)}
        if atoms.pbc.all():
            motion = units.to_voigt((momenta / mass[:, None]).T @ momenta) / atoms.get_volume()
            results["stress"] = np.asarray(seen.stress[k], np.float64) + motion
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.set_constraint(held)
        atoms.info |= {"step": step, "time": step * scene.timestep / 1000}
        yield atoms


def writer(path: Path, scene: Scene) -> Writer:
    """The writer of a file by its suffix: .extxyz, .xyz, .traj (ASE) or .h5; ValueError for another one."""
    match path.suffix:
        case ".extxyz" | ".xyz":
            return _extxyz(path, scene)
        case ".traj":
            return _traj(path, scene)
        case ".h5" | ".hdf5":
            still = {"numbers": scene.system.numbers, "pbc": scene.system.pbc, "fixed": scene.fixed}
            still = {name: np.asarray(x) for name, x in still.items()}
            made = lambda record: hdf5.append(path, record, still, scene.timestep)  # noqa: E731
            return Writer(made, lambda: hdf5.mark(path), lambda mark: hdf5.cut(path, mark))
    raise ValueError(f"{path}: a trajectory is written as .extxyz, .xyz, .traj (ASE) or .h5.")


def text(scene: Scene, record: Record) -> bytes:
    """The steps of a record as extxyz, 8 decimals."""
    import ase.io

    content = io.StringIO()
    ase.io.write(content, list(frames(scene, record)), format="extxyz")
    return content.getvalue().encode()


def _extxyz(path: Path, scene: Scene) -> Writer:
    return Writer(
        lambda record: files.append(path, text(scene, record)),
        lambda: {"bytes": files.size(path)},
        lambda mark: files.cut(path, mark["bytes"]),
    )


def _traj(path: Path, scene: Scene) -> Writer:
    """ASE's trajectory, every digit."""
    from ase.io.trajectory import TrajectoryWriter

    def append(record: Record) -> None:
        with TrajectoryWriter(path, "a") as file:
            for atoms in frames(scene, record):
                file.write(atoms)
        files.flush(path)

    def mark() -> dict[str, Any]:
        with open(path, "rb") if files.size(path) else io.BytesIO() as file:
            return {"bytes": files.size(path), "header": file.read(ULM_HEADER).hex()}

    def cut(mark: dict[str, Any]) -> None:
        files.cut(path, mark["bytes"])
        if mark["bytes"]:
            with open(path, "rb+") as file:
                file.write(bytes.fromhex(mark["header"]))

    return Writer(append, mark, cut)
