"""Common parts of fine-tuning on structures and on properties: beginning, settings and tables."""

import json
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lamjax import checkpoints
from lamjax.data import Frame, Packed, files_of, pack, plan, set_bias
from lamjax.evaluation.errors import predictions
from lamjax.evaluation.structures import LabelledSets
from lamjax.potential import Params, Potential, select
from lamjax.reports import outputs, plots
from lamjax.training import engine, folder, loggers
from lamjax.training.engine import Outputs, Run
from lamjax.training.loops import summary
from lamjax.training.objectives import Objective, Pending
from lamjax.training.records import VALIDATION, two_tables, until
from lamjax.training.tuning_config import TuneConfig


class Beginning(NamedTuple):
    """The stored model, the data, and the steps of the states that are in the output folder."""

    config: Any
    potential: Potential
    params: Params
    replayed: Potential  # with the head whose labels are replayed
    sets: Any  # pairs or crystals, of either kind of run
    replay: Packed | None
    saved: list[int]


class Judged(NamedTuple):
    """A line of validation.csv: what was held out was relaxed and compared; `step` 0 is before training."""

    step: int
    errors: dict[str, float]
    best: bool  # no other one had a smaller score


def begin(config: Any, written: Sequence[str], read_sets: Callable, resume: bool) -> Beginning:
    """Model and data of a run that may begin or go on; `read_sets(config, potential, replayed)` reads the data.

    Raises ValueError as `labels.prepare` does.
    """
    loggers.check(config.logger)
    outputs.claim_folder(config.output, written, files_of(config.files))
    saved = folder.begun(config, resume)
    potential, params = base_model(config)
    replayed = replayed_head(config, potential)
    sets = read_sets(config, potential, replayed)
    replay, params = packed_replay(config, replayed, params, sets.replay, refit=not saved)
    return Beginning(config, potential, params, replayed, sets, replay, saved)


def ready(start: Beginning, goal: Objective, written: Outputs, labels: LabelledSets) -> Run:
    """The run of an objective with epochs, which is validated before the first step and after epochs."""
    config, per_epoch = start.config, goal.per_epoch or 1
    columns = [f"replay_rmse_{kind}" for kind in "efvs"] if start.replay else []
    tables = two_tables(Path(config.output), per_epoch, columns, labels.columns)
    settings = engine.shared_settings(
        config,
        steps=config.epochs * per_epoch,
        freeze=frozen_parts(config, start.potential, start.replayed),
        print_every=1,
        validate_every=config.validate_every * per_epoch,
        validate_first=True,
    )
    written = written._replace(tables=tables, config=config)
    return engine.ready(settings, goal, start.params, written, bool(start.saved))._replace(potential=start.potential)


def has_validated(start: Beginning) -> bool:
    """True if the tables of a run that is continued hold a validation."""
    return bool(start.saved and until(Path(start.config.output) / VALIDATION, start.saved[-1]))


def validations(output: Path, score: str) -> list[Judged]:
    """The rows of validation.csv; the first one with the smallest `score` is marked as the best."""
    rows = until(output / VALIDATION, sys.maxsize)
    scores = [row[score] for row in rows]
    best = scores.index(min(scores)) if scores else None
    errors = [{key: x for key, x in row.items() if key not in ("step", "epoch")} for row in rows]
    return [Judged(int(row["step"]), errors[k], k == best) for k, row in enumerate(rows)]


def summarise(pending: Pending, counted: str) -> dict[str, float]:
    """The metrics under short names; sums over labels become errors. Numbers n_... are those of the part `counted`."""
    row: dict[str, float] = {}
    for key, x in summary([metrics for _, metrics in pending]).items():
        part, _, short = key.rpartition("/")
        if part != "replay" and (part == counted or not short.startswith("n_")):
            row[short] = x
        elif part == "replay" and short.startswith("rmse"):
            row[f"replay_{short}"] = x
    return row


def check_counted(rows: Sequence[Mapping[str, float]], counts: Mapping[str, str], what: str, advice: str) -> None:
    """ValueError with the numbers of `counts` if no structure of an epoch counted; `what` is what a structure is."""
    if sum(row["n_structures"] for row in rows) == 0:
        numbers = {key: int(sum(row.get(key, 0) for row in rows)) for key in counts}
        raise ValueError(f"Not one {what} of the last epoch counted: {json.dumps(numbers)}. {advice}")


def check_apart(train: Sequence[Any], validation: Sequence[Any], what: str, name_of: Callable[[Any], Hashable]) -> None:
    """ValueError for a pair or crystal that is in both sets: one whose `name_of` is the same."""
    sources = {name_of(one): one.source for one in train}
    if both := [(one.source, sources[name_of(one)]) for one in validation if name_of(one) in sources]:
        raise ValueError(
            f"{len(both)} {what} are trained on and held out, the first {both[0][0]}, which is {both[0][1]}. Remove "
            "them from one of the sets."
        )


def plot_errors(path: Path, names: Sequence[str], ends: Sequence[np.ndarray], quantity: str, title: str) -> bool:
    """Plot errors of what was held out at both `ends` of training, where both are finite; whether there was any.

    The number of these takes the place of {} in the title.
    """
    before, after = ends
    shown = np.isfinite(before) & np.isfinite(after)
    if shown.any():
        known = [name for name, show in zip(names, shown, strict=True) if show]
        plots.distribution(
            path, plots.Comparison(known, before[shown], after[shown], quantity), title.format(len(known))
        )
    return bool(shown.any())


def save_model(
    config: Any, potential: Potential, facts: Mapping[str, Any], path: Path, params: Params, step: int
) -> None:
    """A model with what it was made of: base, `facts`, steps, seed and precision."""
    card = {"base": config.base, **facts, "steps": step, "seed": config.seed, "precision": config.precision}
    checkpoints.save(path, potential, params, card)


def base_model(config: TuneConfig) -> tuple[Potential, Params]:
    """The stored model with the head that is trained."""
    potential, params = checkpoints.load(config.base, config.head, np.dtype(config.precision))
    if potential.head is None:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"{config.base} has several heads. Set `head` to one of {known}.")
    return potential, params


def replayed_head(config: TuneConfig, potential: Potential) -> Potential:
    """The potential with the head whose labels are replayed."""
    head = config.replay.head if config.replay else None
    if head is None:
        return potential
    if head not in potential.config.head_names:
        known = ", ".join(potential.config.head_names)
        raise ValueError(f"replay.head: {config.base} has no head {head!r}; it has {known}.")
    return select(potential, head)


def frozen_parts(config: TuneConfig, potential: Potential, replayed: Potential) -> tuple[str, ...]:
    """The parts that stay as they are; heads without a gradient would else move by weight decay."""
    others = set(potential.config.head_names) - {potential.head, replayed.head}
    return (*config.freeze, *(f"heads/{head}" for head in sorted(others)))


def packed_replay(
    config: TuneConfig, potential: Potential, params: Params, frames: Sequence[Frame], refit: bool
) -> tuple[Packed | None, Params]:
    """The replayed frames as arrays (None without any), and the parameters.

    With `refit`, if `replay.bias` says so, their energies per element are first fitted to the frames, which changes no
    force.
    """
    replay = config.replay
    if replay is None:
        return None, params
    shapes = plan(frames, potential.shells, config.max_programs, batch_size=replay.batch_size)
    packed = pack(frames, shapes, config.precision)
    if refit and replay.bias == "change" and any(frame.labels.weights[0] > 0 for frame in frames):
        energies = [float(p.energy) for p in predictions(potential, params, packed, replay.batch_size)]
        params = set_bias(potential, params, frames, np.array(energies))
    return packed, params
