"""Pictures at the end of a run: parity and learning curve of every task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array

from lamjax.data import pack, sample
from lamjax.evaluation.errors import predictions, under_one_name
from lamjax.potential import network_dtype
from lamjax.reports import plots
from lamjax.system import volume
from lamjax.training.curve import CURVE
from lamjax.training.records import read
from lamjax.training.tasks import Task
from lamjax.units import virial_to_stress

MOST = 2000  # frames in a picture
_UNITS = {"e": ("energy RMSE (meV/atom)", 1e3), "f": ("force RMSE (meV/Å)", 1e3), "s": ("stress RMSE (meV/Å³)", 1e3)}


def write_plots(tasks: Sequence[Task], params: Any, output: Path) -> list[Path]:
    """parity_TASK.png of the held-out frames (of those of training where there are none) and curve_TASK.png."""
    written = []
    for task in tasks:
        end = f"_{task.name}" if task.name else ""
        if panels := _parity(task, params):
            split = "held-out" if task.validation else "training"
            written.append(output / f"parity{end}.png")
            plots.parity(written[-1], panels, f"{task.name or task.potential.head}: {split} frames")
        if panels := curves(read(output / CURVE), task.name):
            written.append(output / f"curve{end}.png")
            plots.learning_curve(written[-1], panels, task.name or task.potential.head)
    return written


def _parity(task: Task, params: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(label, prediction) of energy per atom, force components and stress components, where there are labels."""
    frames, packed = (task.held_out, task.validation) if task.validation else (task.frames, task.train)
    if len(frames) > MOST:
        frames = sample(frames, MOST)
        packed = pack(frames, packed.plan, network_dtype(params))
    model = under_one_name(task.potential, params, task.potential.head)
    pairs = list(zip(frames, predictions(*model, packed, "auto:256"), strict=True))

    def panel(k: int, label: Callable, prediction: Any) -> tuple[np.ndarray, ...] | None:
        columns = [(np.ravel(label(f)), np.ravel(prediction(f, p))) for f, p in pairs if f.labels.weights[k] > 0]
        return tuple(np.concatenate(column) for column in zip(*columns, strict=True)) if columns else None

    def stress(frame: Any, virial: Array) -> Array:
        return 1e3 * virial_to_stress(virial, volume(frame.system))

    panels = {
        "energy (eV/atom)": panel(
            0, lambda f: f.labels.energy / f.system.n_atoms, lambda f, p: p.energy / f.system.n_atoms
        ),
        "force component (eV/Å)": panel(1, lambda f: f.labels.forces, lambda f, p: p.forces),
        "stress component (meV/Å³)": panel(2, lambda f: stress(f, f.labels.virial), lambda f, p: stress(f, p.virial)),
    }
    return {name: values for name, values in panels.items() if values is not None}


def curves(rows: list[dict[str, str]], task: str) -> dict:
    """{quantity: {"training": (steps, errors), "validation": ...}} of the rows of a curve."""
    panels = {}
    for kind, (quantity, unit) in _UNITS.items():
        lines = {}
        for name, split in (("training", "train"), ("validation", "validation")):
            column = f"rmse_{kind}_{split}" + (f":{task}" if task else "")
            points = [(int(row["step"]), unit * float(row[column])) for row in rows if row.get(column)]
            if points:
                lines[name] = tuple(zip(*points, strict=True))
        if lines:
            panels[quantity] = lines
    return panels
