"""Runs on properties of relaxed crystals: data and model, and the objective made of them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamjax import data, losses, numerics
from lamjax.evaluation.structures import LabelledSets
from lamjax.losses import Loss
from lamjax.potential import Potential
from lamjax.training import folder, tuning
from lamjax.training.engine import Best, Outputs, Run
from lamjax.training.loops import names_of
from lamjax.training.objectives import Drawn, Measured, Objective, drawn
from lamjax.training.properties_config import PropertyTuneConfig as PropertyTuneConfig
from lamjax.training.properties_config import read_config as read_config
from lamjax.training.properties_data import SUFFIXES as SUFFIXES
from lamjax.training.properties_data import (
    Columns,
    CrystalSets,
    PackedCrystals,
    column_batches,
    columns,
    crystal_batches,
    fingerprint,
    n_batches,
    pack,
    read_sets,
)
from lamjax.training.properties_judge import (
    ERROR,
    HeldOut,
    constants_error,
    crystal_name,
    judge,
    read_properties,
    summary,
    write_properties,
)
from lamjax.training.records import HISTORY, VALIDATION
from lamjax.training.structures_data import MOST, REPLAYED
from lamjax.training.tuning import Beginning

PROPERTIES, PLOT = "properties.csv", "properties.png"
WRITTEN = (*folder.WRITTEN, HISTORY, VALIDATION, PROPERTIES, PLOT)
COUNTS = {
    "n_dropped": "did not converge, fell apart or lost neighbours, and did not count",
    "n_unstable": "have a negative stiffness or imaginary frequencies, and counted",
}  # of crystals, summed over an epoch
SCORE = "score"  # column of validation.csv


class PropertySets(NamedTuple):
    """The data of a run on properties, read and packed."""

    sets: CrystalSets
    train: list[PackedCrystals]  # crystals with targets
    validation: list[PackedCrystals]
    constants: Columns | None  # supercells to train on
    held_constants: Columns | None
    replay: data.Packed | None
    labels: LabelledSets


def prepare(config: PropertyTuneConfig, resume: bool = False) -> Run:
    """Read crystals and model, choose shapes, or take up the last state of the output folder.

    What is wrong with single structures is warned of. Raises ValueError as `labels.prepare` does.
    """
    start = tuning.begin(config, WRITTEN, read_sets, resume)
    output, sets = Path(config.output), start.sets
    folder.check_names(config, start.params)
    packed = _packed(config, start)
    loss = run_loss(config, start.potential, start.replayed, packed)
    goal = property_objective(config, start.potential, loss, packed)
    if packed.validation and tuning.has_validated(start):
        goal = goal._replace(first={"judgement": read_properties(output / PROPERTIES, "before")})
    written = Outputs(
        save=functools.partial(_save_model, config, start.potential),
        keep=functools.partial(_keep, output, sets),
        finish=functools.partial(_finish, output, sets),
    )
    return tuning.ready(start, goal, written, packed.labels)._replace(data=packed)


def _packed(config: PropertyTuneConfig, start: Beginning) -> PropertySets:
    """Arrays of all that is read. ValueError where nothing could be judged."""
    sets, potential = start.sets, start.potential
    train, validation = [], []
    if sets.loss is not None:
        train, validation = pack(config, potential, sets.loss, [sets.train, sets.validation])
    constants, held = (columns(some, potential) for some in (sets.train, sets.validation))
    if (train and not validation) or (not train and held is None):
        raise ValueError(
            "None of the held-out crystals has what is learned (targets, or force constants): nothing could be judged. "
            "Give `validation` files that have it, or another share to hold out."
        )
    frames = {REPLAYED: data.sample(sets.replay, MOST)} if len(sets.replay) else {}
    labels = LabelledSets(frames, {REPLAYED: start.replayed}, config.precision)
    return PropertySets(sets, train, validation, constants, held, start.replay, labels)


def run_loss(config: PropertyTuneConfig, potential: Potential, replayed: Potential, packed: PropertySets) -> Loss:
    """The loss of a batch with the parts "properties", "force_constants" and "replay" that there are."""
    parts: dict[str, tuple[float, Loss]] = {}
    if packed.train:
        parts["properties"] = (1.0, losses.property_loss(potential, packed.sets.loss))
    if packed.constants is not None:
        parts["force_constants"] = (config.force_constants.weight, losses.force_constant_loss(potential))
    if config.replay:
        parts["replay"] = (config.replay.weight, losses.label_loss(replayed, config.replay.loss))
    return losses.weighted_sum(parts)


def property_objective(config: PropertyTuneConfig, potential: Potential, loss: Loss, packed: PropertySets) -> Objective:
    """The distance of properties of relaxed crystals from their targets; held-out crystals are judged one by one."""
    sets, size = packed.sets, config.batch_size
    constants = packed.constants.constants if packed.constants is not None else ()
    per_epoch = n_batches(packed.train, size) if packed.train else len(constants)

    def batches_from(start: int) -> Iterator[tuple[Drawn, dict[str, Any]]]:
        return ((drawn(batch), batch) for batch in _mixed(config, packed, start))

    def names(batch: dict[str, Any]) -> list[str]:
        frames = names_of(batch["replay"], packed.replay.sources) if packed.replay is not None else []
        return [*(crystal_name(crystal) for crystal in sets.train), *frames]

    def measure(params: Any, first: Measured | None, watch: Callable) -> Measured:
        measured: Measured = {}
        if packed.validation and sets.loss is not None:
            n = sum(len(part.members) for part in packed.validation)
            watched = lambda items: watch(items, "relaxing held-out crystals", n)  # noqa: E731
            held_out = HeldOut(sets.validation, packed.validation, sets.loss, size)
            with numerics.matmul_precision(config.matmul_precision):
                judgement = judge(potential, params, held_out, watched)
            before = judgement if first is None else first["judgement"]
            measured = {**summary(judgement, before, sets.validation, sets.loss), "judgement": judgement}
        if packed.held_constants is not None:
            measured["force_constant_rmse"] = constants_error(potential, params, packed.held_constants)
        score = measured["error_median"] if packed.validation else measured["force_constant_rmse"]
        if first is None and not np.isfinite(score):
            raise ValueError(
                f"Half of the {len(sets.validation)} held-out crystals or more do not converge with {config.base} "
                f"before anything is learned, or fall apart. Raise relax.max_steps ({config.relax.max_steps}) or "
                f"relax.fmax ({config.relax.fmax} eV/Å), or look at them with `lamjax properties`."
            )
        return {SCORE: score, **measured, **packed.labels.errors(params)}

    return Objective(
        loss,
        batches_from,
        names,
        lambda pending, params: tuning.summarise(pending, "properties"),
        measure,
        lambda measured: measured[SCORE],
        per_epoch=per_epoch,
        widen=functools.partial(_check_counted, config, bool(packed.train)),
        fingerprint=fingerprint(sets),
    )


def _mixed(config: PropertyTuneConfig, packed: PropertySets, start: int) -> Iterator[dict[str, Any]]:
    """The batches of the parts of the loss, step after step."""
    streams: dict[str, Iterator] = {}
    if packed.train:
        streams["properties"] = crystal_batches(packed.train, config.batch_size, config.seed, start)
    if packed.constants is not None:
        settings = config.force_constants
        streams["force_constants"] = column_batches(
            packed.constants, settings.columns, settings.batch_size, config.seed, start
        )
    if packed.replay is not None and config.replay is not None:
        streams["replay"] = data.batches(packed.replay, config.replay.batch_size, seed=config.seed, start=start)
    return (dict(zip(streams, one, strict=True)) for one in zip(*streams.values(), strict=False))


def validations(output: Path) -> list[tuning.Judged]:
    """The rows of validation.csv; the first one with the smallest score is marked as the best."""
    return tuning.validations(output, SCORE)


def _check_counted(config: PropertyTuneConfig, has_targets: bool, rows: Sequence[Mapping[str, float]]) -> None:
    """ValueError if no crystal of an epoch counted."""
    if has_targets:
        advice = (
            f"Raise relax.max_steps ({config.relax.max_steps}) or relax.fmax ({config.relax.fmax} eV/Å), lower the "
            "learning rate, or look at the crystals with `lamjax properties`."
        )
        best = Path(config.output) / folder.BEST
        tuning.check_counted(rows, COUNTS, "crystal", f"{advice} {best} is the best so far.")


def _save_model(
    config: PropertyTuneConfig, potential: Potential, path: Path, params: Any, step: int, score: float | None
) -> None:
    facts = {"crystals": list(config.crystals), SCORE: score}
    tuning.save_model(config, potential, facts, path, params, step)


def _keep(output: Path, sets: CrystalSets, first: Measured | None, best: Measured) -> None:
    """The table of the held-out crystals, before and of the best model."""
    if "judgement" in best:
        before = best if first is None else first
        write_properties(output / PROPERTIES, sets.validation, before["judgement"], best["judgement"])


def _finish(output: Path, sets: CrystalSets, params: Any, best: Best) -> Iterator[Path]:
    """The plot of the errors of the held-out crystals before, and with the best model."""
    if not (output / PROPERTIES).is_file():
        return
    ends = [read_properties(output / PROPERTIES, when)[ERROR] for when in ("before", "after")]
    title = f"{{}} held-out crystals, relaxed; after: best model, step {best.step}"
    if tuning.plot_errors(output / PLOT, [crystal_name(c) for c in sets.validation], ends, "mean error / scale", title):
        yield output / PLOT
