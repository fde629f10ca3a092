"""Property errors of a model: held-out crystals relaxed and compared with their targets, one by one."""

import csv
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints
from lamjax.losses import PropertyLossConfig, force_constant_loss, property_values
from lamjax.losses.property_targets import SHAPES
from lamjax.potential import Potential
from lamjax.training.properties_data import Columns, PackedCrystals, TargetCrystal, column_batch, crystal_batches

ERROR = "error"  # of a crystal: mean over its targets of |property - target|/scale; infinite where it did not converge
FLAGS = ("converged", "stable")  # a flag that is not set keeps a crystal out of means, and is counted
N_COLUMNS = 6  # of the Hessian of each held-out supercell

Judgement = dict[str, np.ndarray]  # columns of properties.csv, one entry a crystal


class HeldOut(NamedTuple):
    """Crystals to judge a model on."""

    crystals: Sequence[TargetCrystal]
    packed: Sequence[PackedCrystals]  # all of them
    loss: PropertyLossConfig  # which properties, and their scales
    batch_size: int


@functools.lru_cache(maxsize=8)
def _program(potential: Potential, loss: PropertyLossConfig) -> Callable:
    return jax.jit(property_values(potential, loss))


def judge(potential: Potential, params: Any, held_out: HeldOut, watch: Callable = iter) -> Judgement:
    """Every crystal relaxed, its properties, and their errors. A property without a target is given too.

    `watch` gets the iterator of crystals and may show its progress.
    """
    judgement = _blank(held_out.crystals, held_out.loss)
    for number, values in watch(_relaxed(potential, params, held_out)):
        _write(judgement, number, held_out.crystals[number], held_out.loss, values)
    return judgement


def _relaxed(potential: Potential, params: Any, held_out: HeldOut) -> Iterator[tuple[int, Any]]:
    """The number of each crystal and its properties, batch by batch."""
    run, size = _program(potential, held_out.loss), held_out.batch_size
    batches = crystal_batches(held_out.packed, size, None)  # the last one of a shape is filled up
    members = [part.members[k : k + size] for part in held_out.packed for k in range(0, len(part.members), size)]
    for numbers, batch in zip(members, batches, strict=True):
        values = jax.device_get(run(params, batch))
        for k, number in enumerate(numbers):
            yield number, jax.tree.map(lambda x, k=k: x[k], values)


def _blank(crystals: Sequence[TargetCrystal], loss: PropertyLossConfig) -> Judgement:
    n = len(crystals)
    names = [ERROR, *(target.name if _is_number(target.name) else f"{target.name}_error" for target in loss.targets)]
    return {
        **{name: np.full(n, np.nan) for name in names},
        **{name: np.zeros(n, bool) for name in FLAGS},
        "n_steps": np.zeros(n, int),
    }


def _is_number(name: str) -> bool:
    return not SHAPES.get(name)


def _write(judgement: Judgement, number: int, crystal: TargetCrystal, loss: PropertyLossConfig, values: Any) -> None:
    """The row of one crystal."""
    errors = []
    for target in loss.targets:
        value, known = values.values[target.name], crystal.targets.get(target.name)
        error = np.nan if known is None else float(np.mean(np.abs(value - known)))
        errors += [] if known is None else [error / target.scale]
        if _is_number(target.name):
            judgement[target.name][number] = value
        else:
            judgement[f"{target.name}_error"][number] = error
    for name in FLAGS:
        judgement[name][number] = getattr(values, name)
    judgement["n_steps"][number] = values.n_steps
    judgement[ERROR][number] = np.mean(errors) if values.converged and errors else np.inf if errors else np.nan


def summary(
    judgement: Judgement, before: Judgement, crystals: Sequence[TargetCrystal], loss: PropertyLossConfig
) -> dict[str, float]:
    """The numbers of a judgement; means are over crystals that converged and are stable, of which there are shares."""
    judged = np.array([bool(loss.names & crystal.targets.keys()) for crystal in crystals])
    error, usable = judgement[ERROR][judged], (judgement["converged"] & judgement["stable"])[judged]
    numbers = {"error_median": float(np.median(error)), "error_mean": _mean(error[usable])}
    for target in loss.targets:
        numbers[f"{target.name}_mae"] = _mean(property_errors(judgement, crystals, target.name)[judged][usable])
    numbers["improved"] = float(np.mean(error < before[ERROR][judged]))
    numbers["converged"] = float(np.mean(judgement["converged"][judged]))
    numbers["unstable"] = float(np.mean((judgement["converged"] & ~judgement["stable"])[judged]))
    return numbers | {"n_steps": float(np.median(judgement["n_steps"][judged]))}


def property_errors(judgement: Judgement, crystals: Sequence[TargetCrystal], name: str) -> np.ndarray:
    """|property - target| of each crystal in the first unit of the property; NaN without a target."""
    if not _is_number(name):
        return judgement[f"{name}_error"]
    targets = np.array([crystal.targets.get(name, np.nan) for crystal in crystals], float)
    return np.abs(judgement[name] - targets)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if len(known) else np.nan


@functools.lru_cache(maxsize=8)
def _constants_program(potential: Potential) -> Callable:
    return jax.jit(force_constant_loss(potential))


def constants_error(potential: Potential, params: Any, known: Columns) -> float:
    """RMSE (eV/Å²) of some columns of the Hessian of every supercell, always the same ones."""
    squares = []
    for k in range(len(known.constants)):
        batch = column_batch(known, N_COLUMNS, [k], np.random.default_rng(k))
        squares.append(float(_constants_program(potential)(params, batch)[0]) / 3)
    return float(np.sqrt(np.mean(squares)))


def write_properties(path: Path, crystals: Sequence[TargetCrystal], before: Judgement, after: Judgement) -> None:
    """One line a crystal, with its targets, and every quantity before and after."""
    text = io.StringIO()
    rows = csv.writer(text)
    targets = [name for name in before if any(name in crystal.targets for crystal in crystals)]
    columns = [f"{name}_{when}" for name in before for when in ("before", "after")]
    rows.writerow(["structure", "n_atoms", *(f"{name}_target" for name in targets), *columns])
    for k, crystal in enumerate(crystals):
        known = [crystal.targets[name].item() if name in crystal.targets else "" for name in targets]
        numbers = [one[name][k].item() for name in before for one in (before, after)]
        rows.writerow([crystal_name(crystal), crystal.system.n_atoms, *known, *numbers])
    checkpoints.write_atomically(path, text.getvalue().encode())


def crystal_name(crystal: TargetCrystal) -> str:
    """The name of a crystal in tables: its id or formula, else file and frame."""
    known = (crystal.info[key] for key in ("config_id", "material_id", "id", "name", "formula") if key in crystal.info)
    return str(next(known, crystal.source))


def read_properties(path: Path, when: str) -> Judgement:
    """The judgement "before" or "after" in a file of `write_properties`, to the last digit."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [key.removesuffix(f"_{when}") for key in rows[0] if key.endswith(f"_{when}")]
    kinds: Mapping[str, Callable] = {"n_steps": int, **dict.fromkeys(FLAGS, "True".__eq__)}
    return {name: np.array([kinds.get(name, float)(row[f"{name}_{when}"]) for row in rows]) for name in names}
