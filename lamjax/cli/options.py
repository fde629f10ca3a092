"""Arguments and options that several commands have in common."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lamjax import checkpoints


class Precision(StrEnum):
    """The precision of floating-point numbers."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


Model = Annotated[Path, typer.Argument(help=f"small, {checkpoints.KINDS}.")]
Head = Annotated[str | None, typer.Option(help="Head of a model that has several.")]
NetworkPrecision = Annotated[Precision, typer.Option(help="Of the network; positions are float64.")]
LabellerPrecision = Annotated[Precision | None, typer.Option(help="Of a model; float32 where not given.")]
Structures = Annotated[list[Path], typer.Argument(help="extxyz, what ASE reads, DeePMD folders, .h5: every frame.")]
