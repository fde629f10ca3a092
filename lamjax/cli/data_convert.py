"""`lamjax data convert`: frames from any files into one packed store, and back."""

from pathlib import Path
from typing import Annotated

import ase
import numpy as np
import typer
from rich.markup import escape

from lamjax.cli import reading
from lamjax.cli.option_groups import with_groups
from lamjax.cli.options import Precision
from lamjax.data import Frame, ReadOptions, files_of, iterate, open_frames, records, write_store
from lamjax.data.atoms import add_labels
from lamjax.data.store import SUFFIXES
from lamjax.reports import console, outputs, progress
from lamjax.system import constraints, to_ase

TEXT = (".extxyz", ".xyz")


@with_groups(options=reading.options)
def convert(
    files: Annotated[list[Path], typer.Argument(help="Files or folders to read, then the target: .h5 or .extxyz.")],
    dtype: Annotated[
        Precision, typer.Option(help="Of positions, forces and virials in the store.")
    ] = Precision.FLOAT64,
    overwrite: Annotated[bool, typer.Option(help="Replace a target that exists.")] = False,
    *,
    options: ReadOptions,
) -> None:
    """Pack files that `lamjax data check` reads into one store for training on more than fits into memory, or back."""
    *sources, target = files
    if not sources:
        raise ValueError("Give at least one file to read, and the target: `lamjax data convert FILES... TARGET.h5`.")
    outputs.check_ending(target, (*SUFFIXES, *TEXT), "frames are")
    outputs.claim([target], files_of(sources), "TARGET")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists. Choose another name, or replace it with --overwrite.")
    if target.suffix in TEXT:
        frames = open_frames(sources, options=options)
        n = len(frames)
        records.write(target, map(_atoms, progress(frames, "Frames", n)))
    else:
        n = write_store(target, progress(iterate(sources, options=options), "Frames", None), dtype.value)
    console.print(f"{escape(str(target))}: {n:,} frames, {target.stat().st_size / 1e6:,.1f} MB", soft_wrap=True)


def _atoms(frame: Frame) -> ase.Atoms:
    """The structure with its labels under the names that are looked for first."""
    atoms = to_ase(frame.system)
    for key, value in frame.info.items():
        if key == "fixed":
            atoms.set_constraint(constraints(value))
        elif isinstance(value, np.ndarray) and value.ndim and len(value) == len(atoms) and key not in atoms.info:
            atoms.arrays.setdefault(key, value)
        else:
            atoms.info.setdefault(key, value)
    add_labels(atoms, frame.labels)
    return atoms
