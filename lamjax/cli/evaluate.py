"""`lamjax eval`: errors of a model on labelled structures."""

from pathlib import Path
from typing import Annotated

import ase.io
import jax
import numpy as np
import typer
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import checkpoints, units
from lamjax.data import Frame, pack, plan, read
from lamjax.potential import Prediction
from lamjax.reports import console, table
from lamjax.system import to_ase
from lamjax.training.errors import error_table, predictions


def evaluate(
    model: Annotated[Path, typer.Argument(help="A lamjax bundle or a DeePMD-kit .dp file.")],
    files: Annotated[list[Path], typer.Argument(help="Labelled structures: extxyz, what ASE reads, DeePMD folders.")],
    head: Annotated[str | None, typer.Option(help="The head, where the model has several.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    batch_size: Annotated[str, typer.Option(help="Structures at a time, or auto:N for about N atoms.")] = "auto:256",
    max_programs: Annotated[int, typer.Option(help="Shapes that are compiled.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Write the predictions: .npz, .extxyz or .extxyz.gz.")] = None,
) -> None:
    """Mean absolute and root mean square errors of energy, forces and virial."""
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision must be float32 or float64, got {precision!r}.")
    if out is not None and not out.name.endswith((".npz", ".extxyz", ".extxyz.gz")):
        raise ValueError(f"{out}: predictions are written as .npz, .extxyz or .extxyz.gz.")
    with jax.enable_x64(True):  # for sums of energies; the network runs in `precision`
        _evaluate(model, files, head, precision, batch_size, max_programs, out)


def _evaluate(model, files, head, precision, batch_size, max_programs, out) -> None:
    potential, params = checkpoints.load(model, head, np.dtype(precision))
    frames = read(files, elements=potential.elements)
    shapes = plan(frames, potential.shells, max_programs)
    size = int(batch_size) if batch_size.isdigit() else batch_size
    predicted = predictions(potential, params, pack(frames, shapes, precision), size)
    rows = error_table(potential, frames, predicted)
    title = f"{model.name}: {len(frames)} frames of {', '.join(path.name for path in files)}"
    console.print(table(title, ["", "unit", "frames", "MAE", "RMSE", "largest"], rows))
    if not rows:
        console.print("No frame carries a label; nothing to compare with.")
    if out is not None:
        write(out, frames, predicted)
        console.print(f"Predictions: {out}")


def write(path: Path, frames: list[Frame], predicted: list[Prediction]) -> None:
    """Predictions as .npz (arrays numbered by frame) or as extxyz with the labels as REF_*."""
    if path.suffix == ".npz":
        arrays = {
            f"{name}_{k}": getattr(p, name) for k, p in enumerate(predicted) for name in ("energy", "forces", "virial")
        }
        np.savez_compressed(path, sources=np.array([frame.source for frame in frames]), **arrays)
        return
    ase.io.write(path, [_atoms(f, p) for f, p in zip(frames, predicted, strict=True)], format="extxyz")


def _atoms(frame: Frame, prediction: Prediction):
    atoms = to_ase(frame.system)
    results = {"energy": float(prediction.energy), "forces": np.asarray(prediction.forces, np.float64)}
    if atoms.pbc.all():
        stress = units.virial_to_stress(np.asarray(prediction.virial, np.float64), atoms.cell.volume)
        results["stress"] = units.to_voigt(stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["source"] = frame.source
    energy, forces, virial = frame.labels.weights > 0
    if energy:
        atoms.info["REF_energy"] = float(frame.labels.energy)
    if forces:
        atoms.arrays["REF_forces"] = np.asarray(frame.labels.forces, np.float64)
    if virial:
        atoms.info["REF_virial"] = np.asarray(frame.labels.virial, np.float64).ravel()
    return atoms
