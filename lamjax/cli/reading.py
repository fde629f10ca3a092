"""Options of all commands that read structures: under which keys labels are, and what numbered types mean."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ase.data
import typer
from rich.markup import escape

from lamjax.data import FrameError, ReadOptions, Remark, iterate
from lamjax.reports import console
from lamjax.system import System

EnergyKey = Annotated[
    str | None, typer.Option("--energy-key", help="Key of the energy (eV); without, the usual spellings.")
]
ForcesKey = Annotated[str | None, typer.Option("--forces-key", help="Key of the forces (eV/Å); likewise.")]
StressKey = Annotated[
    str | None, typer.Option("--stress-key", help="Key of the stress (eV/Å³, positive in tension); likewise.")
]
VirialKey = Annotated[str | None, typer.Option("--virial-key", help="Key of the virial (eV, -V stress); likewise.")]
Elements = Annotated[
    str | None, typer.Option("--elements", help="Elements of the types of a LAMMPS dump or a DeePMD set: Si,O.")
]


def options(
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    virial_key: VirialKey = None,
    elements: Elements = None,
) -> ReadOptions:
    """The options for reading files from the command line; ValueError for names that are no elements."""
    return ReadOptions(energy_key, forces_key, stress_key, virial_key, elements_of(elements))


def elements_of(text: str | None) -> tuple[str, ...]:
    """("Si", "O") of "Si,O" or "Si O"."""
    names = tuple(name for name in re.split(r"[\s,]+", text or "") if name)
    if wrong := [name for name in names if name not in ase.data.chemical_symbols[1:]]:
        raise ValueError(f"--elements {text}: {wrong[0]!r} is no element. Name them in the order of the types.")
    return names


def keys(options: ReadOptions) -> dict[str, Any]:
    """The options that were given, as keys of a config."""
    chosen = {f"{name}_key": key for name, key in options.keys().items()}
    return chosen | ({"type_map": list(options.elements)} if options.elements else {})


def changes(options: ReadOptions) -> list[str]:
    """The options that were given, as changes of a config that --set takes."""
    return [f"{key}={json.dumps(value)}" for key, value in keys(options).items()]


class Start(NamedTuple):
    """A structure of a file."""

    source: str  # "file#frame"
    number: int  # of all frames of all files
    start: Any  # the System; as it was read, ase.Atoms, if it cannot be used
    info: dict[str, Any]
    error: str | None = None  # why it cannot be used


def structures(
    paths: Sequence[Path], elements: Sequence[str] | None, options: ReadOptions
) -> tuple[list[Start], list[str]]:
    """All structures of the files, those that cannot be used with the reason; and what could not be read."""
    starts: list[Start] = []
    unread: list[str] = []

    def add(path: Path, source: str, start: System | ase.Atoms, info: dict[str, Any], error: str | None = None) -> None:
        name, number = source.rsplit(" frame ", 1)
        starts.append(Start(f"{path.parent / name}#{number}", len(starts), start, info, error))

    for path in paths:

        def strange(error: ValueError, path: Path = path) -> None:
            if isinstance(error, FrameError):
                add(path, error.source, error.atoms, error.atoms.info, str(error))
            else:
                unread.append(str(error))

        try:
            for frame in iterate(path, elements=elements, options=options, on_error=strange, on_remark=tell):
                add(path, frame.source, frame.system, frame.info)
        except (ValueError, OSError) as error:
            unread.append(str(error))
    return starts, unread


def tell(remark: Remark) -> None:
    """A line for what is odd in a file from which structures alone are wanted."""
    if remark.severity == "warning" and remark.about != "labels":
        console.print(f"[yellow]Warning:[/] {escape(str(remark))}", soft_wrap=True)
