"""`lamjax data ...`: what is in a data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lamjax import checkpoints
from lamjax.data import Frame, read, summarize
from lamjax.reports import console, table


def check(
    files: Annotated[list[Path], typer.Argument(help="extxyz, plain or .gz, anything ASE reads, or DeePMD folders.")],
    model: Annotated[Path | None, typer.Option(help="A model file: its elements must cover the data.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="A label that every frame must have.")] = None,
) -> None:
    """Read every frame, check it, and say which labels, elements and sizes there are. Errors name file and frame."""
    elements = checkpoints.load(model)[0].elements if model else None
    found = {str(path): read(path, elements=elements, require=require or ()) for path in files}
    console.print(data_table(found))


def data_table(sets: dict[str, list[Frame]]) -> Table:
    """One column a set of frames: number, sizes, labels and where they were found, elements."""
    summaries = [summarize(frames) for frames in sets.values()]

    def row(name, value):
        return [name, *(value(s) for s in summaries)]

    rows = [
        row("frames", lambda s: s.n_frames),
        row("atoms (min, median, max)", lambda s: "{}, {:g}, {}".format(*s.n_atoms)),
        row("periodic in 3 directions", lambda s: s.periodic),
        *(row(f"with {label}", lambda s, label=label: s.labelled[label]) for label in ("energy", "forces", "virial")),
        row("labels found as", lambda s: ", ".join(_found(s.keys)) or "-"),
        row("elements (frames)", lambda s: " ".join(f"{e}({n})" for e, n in s.elements.items())),
    ]
    return table("Data", ["", *sets], rows)


def _found(keys: dict[str, int]) -> list[str]:
    """The names of the keys, once each."""
    return sorted({key.partition(": ")[2] for key in keys})
