"""Forgetting by fine-tuning: every head's errors before and after, and changes of heads without data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from lamjax.data import Frame, pack, plan, sample
from lamjax.evaluation.errors import FORCES, SHIFTED, error_table, predictions, under_one_name
from lamjax.potential import Params, Potential, Prediction

MOST = 2000  # frames that are looked at for a head
COLUMNS = ("head", "frames", "E before", "E after", "F before", "F after")
BATCH = "auto:256"


class Forgetting(NamedTuple):
    """One head before and after fine-tuning; RMSE in meV/atom and meV/Å, None without labels.

    With `labelled` False there were no frames of the head: the numbers after are then the RMS change of its predictions
    for the frames of the fine-tuning, and there are none before.
    """

    head: str
    labelled: bool
    n: int  # frames
    energy_before: float | None  # after the best shift per element
    energy_after: float | None
    forces_before: float | None
    forces_after: float | None

    @property
    def cells(self) -> list[str | int | float]:
        """The line of the table; the name of a head without frames is marked."""
        return [self.head + ("" if self.labelled else " *"), self.n, *("-" if x is None else x for x in self[3:])]


def forgetting(
    before: tuple[Potential, Params],
    after: tuple[Potential, Params],
    sets: Mapping[str, Sequence[Frame]],
    frames: Sequence[Frame],
    precision: str = "float32",
) -> list[Forgetting]:
    """A line for every head of the model before: on its own frames in `sets` {head: frames}, else on `frames`.

    Of more than 2000 frames, so many are taken, evenly spread.
    """
    lines = []
    for head in before[0].config.head_names:
        own = sets.get(head)
        used = sample(frames if own is None else own, MOST)
        packed = pack(used, plan(used, before[0].shells, 2, batch_size=BATCH), precision)
        old, new = (predictions(*under_one_name(*model, head), packed, BATCH) for model in (before, after))
        if own is None:
            lines.append(Forgetting(head, False, len(used), None, *_moved(old, new)))
        else:
            a, b = (_errors(before[0], used, predicted) for predicted in (old, new))
            lines.append(Forgetting(head, True, len(used), a[0], b[0], a[1], b[1]))
    return lines


def _errors(potential: Potential, frames: Sequence[Frame], predicted: list[Prediction]) -> list[float | None]:
    rows = {row.quantity: row.rmse for row in error_table(potential, frames, predicted)}
    return [rows.get(SHIFTED), rows.get(FORCES)]


def _moved(old: list[Prediction], new: list[Prediction]) -> tuple[float, None, float]:
    """RMS change of energy per atom (meV) and force components (meV/Å), in the places of the errors after."""
    energies = [float(b.energy - a.energy) / len(a.forces) for a, b in zip(old, new, strict=True)]
    forces = np.concatenate([np.ravel(b.forces - a.forces) for a, b in zip(old, new, strict=True)])
    return _rms(energies), None, _rms(forces)


def _rms(x: Array) -> float:
    return float(1e3 * np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
