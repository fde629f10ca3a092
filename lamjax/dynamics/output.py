"""Output of a simulation while it runs: trajectory, table and restart file, all of one step."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import PyTree

from lamjax import files
from lamjax.dynamics import records, restart, trajectory
from lamjax.dynamics.ensembles import Ensemble
from lamjax.dynamics.records import COLUMNS, Record, TableColumn
from lamjax.dynamics.restart import Identity
from lamjax.dynamics.run import Simulation
from lamjax.dynamics.trajectory import Scene


class Paths(NamedTuple):
    """Paths of the output files, all beside the trajectory."""

    trajectory: Path  # .extxyz, .xyz, .traj or .h5
    table: Path  # .csv
    restart: Path
    picture: Path  # .png
    last: Path  # the last good structure of a simulation that failed
    report: Path  # .html

    @property
    def written(self) -> list[Path]:
        """The files of the output that exist."""
        return [path for path in self[:3] if path.exists()]


def paths(path: str | Path) -> Paths:
    """The files of a simulation whose trajectory is `path`."""
    path = Path(path)
    table, restart, picture = (path.with_suffix(suffix) for suffix in (".csv", ".restart", ".png"))
    last = path.with_name(f"{path.stem}-last.extxyz")
    return Paths(path, table, restart, picture, last, path.with_suffix(".html"))


class Output:
    """The files of a simulation. A kill or a full disk loses what came after the last `write`, nothing else.

    `write` appends to trajectory and table, and then puts the restart file in the place of the last one; `resume` cuts
    both to what they were when it was written. `of` is the `identity` of the simulation and may hold more that must not
    change.
    """

    def __init__(self, path: str | Path, scene: Scene, of: Identity, columns: Sequence[TableColumn] = COLUMNS) -> None:
        self.paths, self.scene, self.of, self.columns = paths(path), scene, of, columns
        self.trajectory = trajectory.writer(self.paths.trajectory, scene)

    def refuse(self) -> None:
        """Raise ValueError if there are files already."""
        if existing := self.paths.written:
            raise ValueError(f"{existing[0]} exists. Go on with it (--resume), or name another output.")

    def begin(self, simulation: Simulation) -> None:
        """Make the files of a new simulation; ValueError if there are some."""
        self.refuse()
        self.paths.trajectory.parent.mkdir(parents=True, exist_ok=True)
        self._save(simulation)

    @property
    def has_seen(self) -> bool:
        """Whether any step has been recorded."""
        return files.size(self.paths.table) > 0

    def write(self, simulation: Simulation, seen: Record) -> None:
        """Append a record and save the restart; Ctrl-C waits until both are written."""
        with files.uninterrupted():
            self._write(simulation, seen)

    def _write(self, simulation: Simulation, record: Record) -> None:
        if not self.has_seen:
            files.append(self.paths.table, records.header(self.columns).encode())
        files.append(self.paths.table, records.rows(record, self.scene.timestep, self.columns).encode())
        self.trajectory.append(record)
        self._save(simulation)

    def resume(self, ensemble: Ensemble, params: PyTree) -> Simulation:
        """The simulation of the restart file; records that were written after it are cut off.

        Raises ValueError for files of another simulation, or ones that were changed since.
        """
        path, system, fixed = self.paths.restart, self.scene.system, self.scene.fixed
        simulation, facts = restart.restore(path, ensemble, params, system, fixed, self.of)
        files.cut(self.paths.table, facts["table"])
        self.trajectory.cut(facts["trajectory"])
        return simulation

    def _save(self, simulation: Simulation) -> None:
        facts = {"table": files.size(self.paths.table), "trajectory": self.trajectory.mark()}
        restart.save(self.paths.restart, simulation, self.of, facts)

    def write_last(self, seen: Record) -> None:
        """The structure of a simulation that failed, at its last good step."""
        files.write_atomically(self.paths.last, trajectory.text(self.scene, seen))
