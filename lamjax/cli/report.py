"""`lamjax report`: what a run has left behind, as one page that opens in any browser."""

import contextlib
import csv
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lamjax import dynamics, files
from lamjax.cli import relax_records, report_runs, report_structures
from lamjax.reports import console
from lamjax.training.folder import CONFIG, REPORT

RELAXED = (".extxyz", ".xyz")


def report(
    path: Annotated[
        Path,
        typer.Argument(help="Folder of train, distill or one of the finetune commands, or the output of relax or md."),
    ],
) -> None:
    """Write the page of a run: config, data, curves, errors, structures that can be turned, versions.

    It is report.html in the folder of a run, relaxed.html beside relaxed.extxyz, traj.html beside a trajectory: one
    file that needs no network. Every run writes it at its end; this command makes it of a run that goes on, was killed,
    or is older. In any other folder the pages of all relaxations and simulations that lie there are written.
    """
    outputs = [path] if path.is_file() or (path / CONFIG).is_file() else outputs_in(path)
    for one in outputs:
        console.print(escape(str(write(one))), soft_wrap=True)


def write(path: Path, starts: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a folder, of relaxed structures (of `starts` by source, where known), or of a trajectory."""
    end = f"Written by lamjax {version('lamjax')}, jax {version('jax')}, Python {platform.python_version()}."
    if path.is_dir():
        page, place = report_runs.page(path, end), path / REPORT
    elif is_simulation(path):
        page, place = report_structures.simulation(path, end), path.with_suffix(".html")
    elif is_relaxation(path):
        page, place = report_structures.relaxations(path, starts, end), path.with_suffix(".html")
    else:
        raise ValueError(f"{path} was not written by lamjax relax or lamjax md. {_remedy()}")
    files.write_atomically(place, page.encode())
    return place


def outputs_in(folder: Path) -> list[Path]:
    """The relaxed structures and trajectories in a folder; ValueError if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such file or folder. {_remedy()}")
    known = {".h5", ".hdf5", ".traj", *RELAXED}
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in known and path.is_file()]
    if not (outputs := [path for path in paths if is_simulation(path) or is_relaxation(path)]):
        raise ValueError(f"{folder} holds no {CONFIG} of a run, no relaxed structures and no trajectory. {_remedy()}")
    return outputs


def is_simulation(path: Path) -> bool:
    """Whether the table of a simulation lies beside the file."""
    table = dynamics.paths(path).table
    if path.suffix not in dynamics.SUFFIXES or not table.is_file():
        return False
    with table.open(newline="") as file:
        return {"step", "time_ps", "temperature_K"} <= set(next(csv.reader(file), []))


def is_relaxation(path: Path) -> bool:
    """Whether `lamjax relax` has written the file."""
    if path.suffix not in RELAXED:
        return False
    with contextlib.suppress(ValueError, OSError):
        return bool(relax_records.first(path))
    return False


def _remedy() -> str:
    return "Name the folder of a training, or the file that relax or md has written: lamjax report relaxed.extxyz."
