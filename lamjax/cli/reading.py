"""Options of all commands that read structures: under which keys labels are, and what numbered types mean."""

import json
import re
from typing import Annotated, Any

import ase.data
import typer
from rich.markup import escape

from lamjax.data import ReadOptions, Remark
from lamjax.reports import console

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
    energy: str | None = None,
    forces: str | None = None,
    stress: str | None = None,
    virial: str | None = None,
    elements: str | None = None,
) -> ReadOptions:
    """What the command line says of the files; ValueError for names that are no elements."""
    return ReadOptions(energy, forces, stress, virial, elements_of(elements))


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


def tell(remark: Remark) -> None:
    """A line for what is odd in a file from which structures alone are wanted."""
    if remark.severity == "warning" and remark.about != "labels":
        console.print(f"[yellow]Warning:[/] {escape(str(remark))}", soft_wrap=True)
