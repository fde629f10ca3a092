"""Predictions of a model for labelled frames, and their errors."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ase.data
import jax
import numpy as np

from lamjax.data import Frame, Packed, batches
from lamjax.data.statistics import compositions
from lamjax.losses import predict_rows
from lamjax.numerics import compiler_options
from lamjax.potential import Params, Potential, Prediction, select

SHIFTED, FORCES, VIRIAL = "energy, shifted per element", "force component", "virial component"


class ErrorRow(NamedTuple):
    """One line of an error table."""

    quantity: str
    unit: str
    n: int  # frames
    mae: float
    rmse: float
    largest: float


def predictions(
    potential: Potential, params: Params, packed: Packed, batch_size: int | str = "auto"
) -> list[Prediction]:
    """The prediction for every packed frame, in order, without padding (numpy)."""
    run = _jitted(potential)
    by_frame: dict[int, Prediction] = {}
    for batch in batches(packed, batch_size, seed=None, epochs=1):
        result = jax.device_get(run(params, batch))
        for row, slot in zip(*np.nonzero(batch.frame >= 0), strict=True):
            part = (batch.system.structure[row] == slot) & (batch.system.numbers[row] > 0)
            by_frame[int(batch.frame[row, slot])] = Prediction(
                result.energy[row, slot],
                result.forces[row, part],
                result.virial[row, slot],
                result.atomic_energies[row, part],
            )
    return [by_frame[k] for k in range(len(packed.sources))]


def under_one_name(potential: Potential, params: Params, head: str) -> tuple[Potential, Params]:
    """The model with one head alone, called as the first head of equal config: such models share their programs."""
    configs = dict(potential.config.heads)
    name = next(name for name, config in configs.items() if config == configs[head])
    return select(potential, name), Params(params.descriptor, {name: params.heads[head]})


def seen_elements(potential: Potential, params: Params, head: str) -> tuple[str, ...] | None:
    """The elements that the data of a head held, as its energies per element tell; None if it has none but zeros."""
    if "statistics" not in params.heads[head]:
        return None
    statistics = params.heads[head]["statistics"]
    size = np.abs(np.asarray(statistics["out_bias"]) + np.asarray(statistics["bias_atom_e"]))
    if not size.any():
        return None
    # a least-squares fit leaves rounding, not always zero, for an element without data
    return tuple(e for e, s in zip(potential.config.elements, size, strict=True) if s > 1e-9 * size.max())


def unseen_elements(potential: Potential, params: Params, frames: Sequence[Frame]) -> dict[str, list[str]]:
    """Elements of the frames that the data of each head did not hold, as far as is known."""
    present = {ase.data.chemical_symbols[z] for frame in frames for z in np.unique(frame.system.numbers) if z > 0}
    unseen = {}
    for head in potential.config.head_names:
        trained = seen_elements(potential, params, head)
        unseen[head] = [] if trained is None else sorted(present - set(trained))
    return unseen


def zero_shot(
    potential: Potential, params: Params, frames: Sequence[Frame], packed: Packed, batch_size: int | str = "auto"
) -> dict[str, list[ErrorRow]]:
    """The error table of every head for the same frames, the best one first.

    Best is the least RMSE of forces; of energies after the shift per element where no frame has forces.
    """
    tables = {}
    for head in potential.config.head_names:
        one = under_one_name(potential, params, head)
        tables[head] = error_table(one[0], frames, predictions(*one, packed, batch_size))
    return dict(sorted(tables.items(), key=lambda item: _merit(item[1])))


def _merit(rows: list[ErrorRow]) -> float:
    rmse = {row.quantity: row.rmse for row in rows}
    return next((rmse[name] for name in (FORCES, SHIFTED) if name in rmse), np.inf)


def error_table(potential: Potential, frames: Sequence[Frame], predicted: Sequence[Prediction]) -> list[ErrorRow]:
    """Errors of energy (meV/atom; also after the best shift per element), forces (meV/Å) and virial (meV/atom).

    Quantities without a label in any frame are left out.
    """
    rows = []
    labelled = [k for k, f in enumerate(frames) if f.labels.weights[0] > 0]
    if labelled:
        n = np.array([frames[k].system.n_atoms for k in labelled])
        d = np.array([float(predicted[k].energy) - float(frames[k].labels.energy) for k in labelled])
        rows.append(_row("energy", "meV/atom", len(n), d / n))
        if potential.elements is not None:
            counts = compositions(potential, [frames[k] for k in labelled])
            shifted = d - counts @ np.linalg.lstsq(counts, d, rcond=None)[0]
            rows.append(_row(SHIFTED, "meV/atom", len(n), shifted / n))
    pairs = [(f, p) for f, p in zip(frames, predicted, strict=True) if f.labels.weights[1] > 0]
    if pairs:
        d = np.concatenate([np.ravel(p.forces - f.labels.forces) for f, p in pairs])
        rows.append(_row(FORCES, "meV/Å", len(pairs), d))
    pairs = [(f, p) for f, p in zip(frames, predicted, strict=True) if f.labels.weights[2] > 0]
    if pairs:
        d = np.concatenate([np.ravel(p.virial - f.labels.virial) / f.system.n_atoms for f, p in pairs])
        rows.append(_row(VIRIAL, "meV/atom", len(pairs), d))
    return rows


def _row(quantity: str, unit: str, n: int, d: np.ndarray) -> ErrorRow:
    size = 1000 * np.abs(d.astype(np.float64))
    return ErrorRow(quantity, unit, n, float(size.mean()), float(np.sqrt(np.mean(size**2))), float(size.max()))


@functools.lru_cache(maxsize=16)
def _jitted(potential: Potential) -> Callable:
    return jax.jit(functools.partial(predict_rows, potential), compiler_options=compiler_options())
