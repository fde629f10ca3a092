"""The output of `lamjax md`: lines during the simulation, a table and a picture at its end."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lamjax.cli.committee import COLUMN, Watch
from lamjax.data import Frame
from lamjax.dynamics import Ensemble, NPTConfig, NVEConfig, NVTConfig, Output, Record, Simulation
from lamjax.neighbors import Shell
from lamjax.reports import console, plots, table
from lamjax.reports.console import FittingTable
from lamjax.units import GPA

NS_PER_DAY = 86400 * 1e-6  # of fs/s


class Clock:
    """Speed in ns/day: of the last chunk, and of all but the first one, which was compiled."""

    def __init__(self, step: int, timestep: float) -> None:
        self.timestep = timestep
        self.ticks = [(step, time.monotonic())]

    def tick(self, step: int) -> float:
        """A chunk is done; its speed."""
        self.ticks.append((step, time.monotonic()))
        return self._speed(*self.ticks[-2:])

    @property
    def mean(self) -> float | None:
        """The mean speed; None before the second chunk, as the first one includes compilation."""
        return self._speed(self.ticks[1], self.ticks[-1]) if len(self.ticks) > 2 else None

    def _speed(self, first: tuple[int, float], last: tuple[int, float]) -> float:
        return (last[0] - first[0]) * self.timestep / max(last[1] - first[1], 1e-9) * NS_PER_DAY


def beginning(ensemble: Ensemble, start: Frame, fixed: np.ndarray, velocities: str) -> str:
    """One line: what is simulated."""
    match ensemble.config:
        case NVEConfig():
            what = "constant energy"
        case NVTConfig(thermostat="langevin") as c:
            what = f"{c.temperature:g} K, Langevin with friction {c.friction:g}/fs"
        case NVTConfig() as c:
            what = f"{c.temperature:g} K, Nosé-Hoover chain of {c.thermostat_time:g} fs"
        case NPTConfig() as c:
            what = f"{c.temperature:g} K, {c.pressure / GPA:g} GPa, Nosé-Hoover chains of {c.thermostat_time:g} fs and "
            what += f"{c.barostat_time:g} fs (cell)"
    n_fixed = int(np.all(fixed, axis=1).sum())
    held = f", {n_fixed} of them fixed" if n_fixed else ""
    return (
        f"{start.source}: {start.system.n_atoms} atoms{held}; {what}; {ensemble.config.timestep:g} fs; "
        f"velocities: {velocities}"
    )


def note(record: Record, speed: float) -> str:
    """Temperature and speed in words, beside the progress bar."""
    return f"{record.temperature[-1]:.0f} K  {record.potential_energy[-1]:.3f} eV  {speed:.3g} ns/day"


def grown(before: Simulation, now: Simulation) -> str:
    """A line on how often the arrays have grown, and how wide they are now."""
    times = now.n_grown - before.n_grown
    slots = "/".join(map(str, now.shapes.capacities))
    often = "" if times == 1 else f" {times} times"
    atoms = getattr(now.shapes, "n_atoms", None)  # of a domain
    domains = "" if atoms is None else f" and {atoms} atoms in a domain with its halo"
    return f"step {now.step}: the arrays of neighbours grew{often}, to {slots}{domains}; that means to compile anew."


def dropped(record: Record, shells: Sequence[Shell]) -> bool:
    """Whether the model drops neighbours in a frame of a record; prints a warning then."""
    if not record.truncated.any():
        return False
    widths = ", ".join(f"{shell.sel} within {shell.cutoff:g} Å" for shell in shells if shell.sel is not None)
    console.print(
        f"[yellow]Step {record.step[np.argmax(record.truncated)]}: an atom has more neighbours than the model looks at "
        f"({widths}): it keeps the nearest, as DeePMD-kit does,[/] and energy is conserved no longer. Said once.",
        soft_wrap=True,
    )
    return True


def disagree(watch: Watch, record: Record, most: float) -> bool:
    """Whether a committee deviates by more than the limit in a frame of the last record; prints a warning then."""
    over = np.flatnonzero(watch.last > most)
    if not len(over):
        return False
    step, deviation = record.step[over[0]], watch.last[over[0]]
    console.print(
        f"[yellow]Step {step}: the committee's forces deviate by {deviation:.3g} eV/Å on an atom, --max-deviation is "
        f"{most:g}.[/] What it sees there it has not learned: label such frames and train on them.",
        soft_wrap=True,
    )
    return True


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, np.array(rows, float).T, strict=True))


MEANS = ("mean ± deviation", "all", "second half")


def means(whole: dict[str, np.ndarray], n_atoms: int) -> list[tuple[str, str, str]]:
    """Means and drift of a table, and of its second half."""
    half = {name: values[len(values) // 2 :] for name, values in whole.items()}
    names = {"temperature_K": "temperature (K)", "pressure_GPa": "pressure (GPa)", "volume_A3": "volume (Å³)"}
    names |= {COLUMN: "deviation of the committee (eV/Å)"} if COLUMN in whole else {}
    rows = [
        (text, *(f"{x[name].mean():.5g} ± {x[name].std():.3g}" for x in (whole, half)))
        for name, text in names.items()
        if np.isfinite(whole[name]).all() and (name != "volume_A3" or np.ptp(whole[name]))
    ]
    if np.isfinite(whole["conserved_eV"]).all() and len(half["step"]) > 1:
        drifts = [np.polyfit(x["time_ps"], x["conserved_eV"] / n_atoms, 1)[0] for x in (whole, half)]
        rows.append(("conserved, drift (eV/atom/ps)", *(f"{x:.1e}" for x in drifts)))
    return rows


def summary(output: Output, simulation: Simulation, n_steps: int, clock: Clock) -> FittingTable:
    """`means` of all that is in the output, and the speed."""
    whole, n_atoms = read(output.paths.table), output.scene.system.n_atoms
    rows = means(whole, n_atoms)
    if clock.mean is not None:
        rows.append(("speed (ns/day)", f"{clock.mean:.3g}", ""))
    if simulation.n_grown:
        rows.append(("growths of the arrays", simulation.n_grown, ""))
    title = f"{simulation.step} of {n_steps} steps, {whole['time_ps'][-1]:g} ps, {n_atoms} atoms"
    return table(title, MEANS, rows)


def picture(output: Output) -> None:
    """Temperature, energies, drift, pressure and volume against time."""
    columns, n_atoms = read(output.paths.table), output.scene.system.n_atoms
    if shown := panels(columns, n_atoms):
        title = f"{output.paths.trajectory.stem}: {n_atoms} atoms, {columns['time_ps'][-1]:g} ps"
        plots.series(output.paths.picture, columns["time_ps"], "time (ps)", shown, title)


def panels(columns: dict[str, np.ndarray], n_atoms: int) -> dict[str, dict[str, np.ndarray]]:
    """The curves to draw of a table, {quantity: {line: values}}; nothing of a single line."""
    if len(columns["step"]) < 2:
        return {}
    change = {name: 1000 * (values - values[0]) / n_atoms for name, values in columns.items()}
    panels = {"temperature (K)": {"": columns["temperature_K"]}}
    kinds = {"potential": "potential_eV", "kinetic": "kinetic_eV", "total": "total_eV"}
    panels["energy change (meV/atom)"] = {name: change[key] for name, key in kinds.items()}
    if np.isfinite(columns["conserved_eV"]).all():
        panels["conserved, change (meV/atom)"] = {"": change["conserved_eV"]}
    if np.isfinite(columns["pressure_GPa"]).all():
        panels["pressure (GPa)"] = {"": columns["pressure_GPa"]}
    if np.isfinite(columns["volume_A3"]).all() and np.ptp(columns["volume_A3"]):
        panels["volume (Å³)"] = {"": columns["volume_A3"]}
    if COLUMN in columns and np.isfinite(columns[COLUMN]).all():
        panels["committee, force deviation (eV/Å)"] = {"": columns[COLUMN]}
    return panels
