"""Records of a simulation, and the table that is written of them."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lamjax import units


class Record(NamedTuple):
    """Observables of a simulation at some steps, on the host."""

    step: Int[np.ndarray, " n"]
    potential_energy: Float[np.ndarray, " n"]  # eV
    kinetic_energy: Float[np.ndarray, " n"]  # eV
    temperature: Float[np.ndarray, " n"]  # K
    stress: Float[np.ndarray, "n 6"]  # eV/Å³, of potential and motion, Voigt, positive in tension; NaN if not periodic
    volume: Float[np.ndarray, " n"]  # Å³
    conserved: Float[np.ndarray, " n"]  # eV; NaN for ensembles without one
    positions: Float[np.ndarray, "n n_atoms 3"]  # Å, unwrapped
    momenta: Float[np.ndarray, "n n_atoms 3"]  # sqrt(amu eV), as in ASE
    cell: Float[np.ndarray, "n 3 3"]  # Å
    forces: Float[np.ndarray, "n n_atoms 3"]  # eV/Å
    truncated: Bool[np.ndarray, " n"]  # an atom has more neighbours than the model's own `sel`, which drops some

    @property
    def pressure(self) -> Float[np.ndarray, " n"]:
        """eV/Å³, of potential and motion."""
        return -self.stress[:, :3].mean(axis=1)


class TableColumn(NamedTuple):
    """A column of the table: its name with the unit, and its values for the steps of a record."""

    name: str
    of: Callable[[Record, float], np.ndarray]  # (record, time step in fs) -> (n,)


COLUMNS = (
    TableColumn("step", lambda record, timestep: record.step),
    TableColumn("time_ps", lambda record, timestep: record.step * timestep / 1000),
    TableColumn("potential_eV", lambda record, timestep: record.potential_energy),
    TableColumn("kinetic_eV", lambda record, timestep: record.kinetic_energy),
    TableColumn("total_eV", lambda record, timestep: record.potential_energy + record.kinetic_energy),
    TableColumn("conserved_eV", lambda record, timestep: record.conserved),
    TableColumn("temperature_K", lambda record, timestep: record.temperature),
    TableColumn("pressure_GPa", lambda record, timestep: record.pressure / units.GPA),
    TableColumn("volume_A3", lambda record, timestep: record.volume),
)


def header(columns: Sequence[TableColumn] = COLUMNS) -> str:
    """The first line of the table."""
    return ",".join(column.name for column in columns) + "\n"


def rows(record: Record, timestep: float, columns: Sequence[TableColumn] = COLUMNS) -> str:
    """A line for each step of a record, with every digit; NaN where there is no such quantity."""
    values = [np.asarray(column.of(record, timestep)).tolist() for column in columns]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*values, strict=True))
    return text.getvalue()
