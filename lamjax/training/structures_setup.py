"""Everything a fine-tuning on structures needs before its first step, or the last state of an interrupted run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from lamjax import checkpoints, losses
from lamjax.data import Packed, files_of, set_bias
from lamjax.losses import Learned, Loss
from lamjax.potential import Potential, select
from lamjax.reports import outputs
from lamjax.training import curve
from lamjax.training.checkpoints import restore_state
from lamjax.training.errors import predictions
from lamjax.training.schedules import Schedule, schedule
from lamjax.training.setup import (
    BEST,
    CONFIG,
    FACTS,
    MODEL,
    STATES,
    begun,
    begun_with,
    check_data,
    check_length,
    check_names,
)
from lamjax.training.state import TrainState, init, optimizer
from lamjax.training.structures_config import StructureTuneConfig, objective_of
from lamjax.training.structures_data import (
    HELD_OUT,
    REPLAYED,
    Packing,
    PairSets,
    fingerprint,
    pack_replay,
    read_sets,
)
from lamjax.training.structures_judge import Labels

HISTORY, VALIDATION, STRUCTURES, PLOT = "history.csv", "validation.csv", "structures.csv", "structures.png"
MINIMISER = "minimiser.json"
WRITTEN = (CONFIG, FACTS, HISTORY, VALIDATION, STRUCTURES, PLOT, MINIMISER, BEST, MODEL, f"{STATES}/*")
MOST_WIDENED = 4  # times that the arrays grow


class TuneRun(NamedTuple):
    """A run that is ready to begin, or to go on."""

    config: StructureTuneConfig
    potential: Potential  # with the head that is trained
    state: TrainState  # its memory is reused by the first step
    done: int  # steps before the first one
    loss: Loss  # of a batch {"structures": Named, "replay": Batch}
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    sets: PairSets
    packing: Packing
    replay: Packed | None
    labels: Labels
    freeze: tuple[str, ...]  # that of the config, and heads that nothing trains

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.packing.per_epoch


def prepare(config: StructureTuneConfig, resume: bool = False) -> TuneRun:
    """Read pairs and model, choose shapes, or take up the last state of the output folder.

    What is wrong with single pairs is warned of. Raises ValueError as `training.setup.prepare` does.
    """
    outputs.claim_folder(config.output, WRITTEN, files_of(config.files))
    output, saved = Path(config.output), begun(config, resume)
    potential, params = _model(config)
    replayed = _replayed(config, potential)
    sets = read_sets(config, potential, replayed)
    if saved:
        check_data(output, fingerprint(sets))
    replay = pack_replay(config, replayed, sets.replay)
    if replay is not None and config.replay.bias == "change" and not saved:
        params = _refitted(config, replayed, params, sets, replay)
    if config.learn_minimiser:
        params = losses.with_minimiser(params, config.objective.relax, config.precision)
    check_names(config, params)
    packing = Packing(sets.train, potential.shells, config, _widened(output, saved[-1]) if saved else 0)
    if saved and (old := begun_with(output, config)) is not None:
        before, now = (n * packing.per_epoch for n in (old.epochs, config.epochs))
        check_length(output, config.schedule, f"epochs: {old.epochs} -> {config.epochs}", (before, now), saved[-1])
    rate = schedule(config.schedule, config.epochs * packing.per_epoch)
    updates = optimizer(config.optimizer, rate)
    state = init(params, updates, ema=config.ema_decay is not None)
    if saved:
        state = restore_state(output / STATES, state)
    labels = Labels(sets.frames, {HELD_OUT: potential, REPLAYED: replayed}, config.precision)
    loss, freeze = run_loss(config, potential, replayed), _freeze(config, potential, replayed)
    done = int(state.step)
    return TuneRun(config, potential, state, done, loss, updates, rate, sets, packing, replay, labels, freeze)


def run_loss(config: StructureTuneConfig, potential: Potential, replayed: Potential) -> Loss:
    """The loss of a batch {"structures": Named}, with "replay" if the config has it."""
    objective = objective_of(config)
    make = {
        "structure": losses.structure_loss,
        "force": losses.target_force_loss,
        "newton": losses.newton_loss,
    }[objective.type]
    on_structures = make(potential, objective)
    parts = {"structures": (1.0, lambda params, batch, ratio: on_structures(params, batch.pairs, ratio))}
    if config.replay:
        on_labels = losses.label_loss(replayed, config.replay.loss)
        parts["replay"] = (config.replay.weight, lambda params, batch, ratio: on_labels(model(params), batch, ratio))
    return losses.weighted_sum(parts)


def model(params: Any) -> Any:
    """The potential's parameters, without the numbers of a minimiser."""
    return params.potential if isinstance(params, Learned) else params


def _model(config: StructureTuneConfig):
    """The stored model with the head that is trained."""
    potential, params = checkpoints.load(config.base, config.head, np.dtype(config.precision))
    if potential.head is None:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"{config.base} has several heads. Set `head` to one of {known}.")
    return potential, params


def _replayed(config: StructureTuneConfig, potential: Potential) -> Potential:
    """The potential with the head whose labels are replayed."""
    head = config.replay.head if config.replay else None
    if head is None:
        return potential
    if head not in potential.config.head_names:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"replay.head: {config.base} has no head {head!r}; it has {known}.")
    return select(potential, head)


def _freeze(config: StructureTuneConfig, potential: Potential, replayed: Potential) -> tuple[str, ...]:
    """The parts that stay as they are; heads without a gradient would else move by weight decay."""
    others = set(potential.config.head_names) - {potential.head, replayed.head}
    return (*config.freeze, *(f"heads/{head}" for head in sorted(others)))


def _refitted(config: StructureTuneConfig, replayed: Potential, params, sets: PairSets, packed: Packed):
    """The parameters with the energy per element shifted to the replayed labels; no force is changed by it."""
    if not any(frame.labels.weights[0] > 0 for frame in sets.replay):
        return params
    found = predictions(replayed, params, packed, config.replay.batch_size)
    return set_bias(replayed, params, sets.replay, np.array([float(p.energy) for p in found]))


def _widened(output: Path, done: int) -> int:
    """How often the arrays had grown up to a step."""
    rows = past(output / HISTORY, done)
    per_epoch = sum(row["epoch"] == 1 for row in rows)  # where the first epoch is not over, nothing has grown
    return times_widened(rows, per_epoch)


def times_widened(rows: list[dict[str, float]], per_epoch: int) -> int:
    """Whole epochs in which neighbours were missing, after each of which the arrays grow: but not for ever."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row["epoch"], []).append(row.get("n_overflow", 0))
    return min(MOST_WIDENED, sum(len(counts) == per_epoch and sum(counts) > 0 for counts in found.values()))


def past(path: Path, done: int) -> list[dict[str, float]]:
    """The rows of a table up to the step from which a run goes on; none of a run that begins."""
    rows = curve.read(path) if done else []
    return [{key: float(x) for key, x in row.items() if x} for row in rows if int(row["step"]) <= done]
