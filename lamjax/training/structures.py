"""Runs on where structures relax to: pairs, shapes and model, and the objective made of them."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints, losses
from lamjax.data import Packed, PackedPairs, batches, n_batches, pack_pairs
from lamjax.data.pairs import pair_name
from lamjax.evaluation.structures import (
    LabelledSets,
    judge,
    read_structures,
    summary,
    with_ends,
    write_ends,
    write_structures,
)
from lamjax.losses import Learned, Loss
from lamjax.potential import Potential
from lamjax.training import folder, tuning
from lamjax.training.engine import Best, Outputs, Run
from lamjax.training.loops import names_of
from lamjax.training.objectives import Drawn, Measured, Objective, Pending, drawn
from lamjax.training.records import HISTORY, VALIDATION, until
from lamjax.training.structures_config import StructureTuneConfig as StructureTuneConfig
from lamjax.training.structures_config import judge_of, objective_of
from lamjax.training.structures_config import read_config as read_config
from lamjax.training.structures_data import (
    HELD_OUT,
    REPLAYED,
    PairSets,
    fingerprint,
    is_at_target,
    noisy_batches,
    read_sets,
    wider,
)

STRUCTURES, ENDS, PLOT, MINIMISER = "structures.csv", "structures.extxyz", "structures.png", "minimiser.json"
WRITTEN = (*folder.WRITTEN, HISTORY, VALIDATION, STRUCTURES, ENDS, PLOT, MINIMISER)
MOST_WIDENED = 4  # times that the arrays grow
COUNTS = {
    "n_dropped": "exploded or became infinite on the way, and did not count",
    "n_overflow": "had more neighbours than slots on the way",
    "n_gated": "did not converge, and had no implicit gradient",
    "n_negative": "had a negative curvature where the gradient is solved for",
    "n_damped": "needed a larger damping",
}  # of structures, summed over an epoch
SCORE = "dq_median"  # column of validation.csv


class StructureSets(NamedTuple):
    """The data of a run on structures, read and packed."""

    sets: PairSets
    packed: PackedPairs  # of the pairs to train on
    replay: Packed | None
    labels: LabelledSets


def prepare(config: StructureTuneConfig, resume: bool = False) -> Run:
    """Read pairs and model, choose shapes, or take up the last state of the output folder.

    What is wrong with single pairs is warned of. Raises ValueError as `labels.prepare` does.
    """
    start = tuning.begin(config, WRITTEN, read_sets, resume)
    output, potential, sets, replay = Path(config.output), start.potential, start.sets, start.replay
    if config.learn_minimiser and isinstance(config.objective, losses.StructureLossConfig):
        start = start._replace(params=losses.with_minimiser(start.params, config.objective.relax, config.precision))
    folder.check_names(config, start.params)
    widened = _times_widened(output, start.saved[-1]) if start.saved else 0
    packed = pack_pairs(sets.train, potential.shells, config.max_programs)
    for _ in range(widened):
        packed = wider(packed, potential.shells)
    labels = LabelledSets(sets.frames, {HELD_OUT: potential, REPLAYED: start.replayed}, config.precision)
    data = StructureSets(sets, packed, replay, labels)
    goal = structure_objective(config, potential, run_loss(config, potential, start.replayed), data, widened)
    if tuning.has_validated(start):
        before = with_ends(read_structures(output / STRUCTURES, "before"), output / ENDS, "before")
        goal = goal._replace(first={"judgement": before})
    written = Outputs(
        save=functools.partial(_save_model, config, start.potential),
        keep=functools.partial(_keep, output, sets),
        finish=functools.partial(_finish, output, sets),
    )
    return tuning.ready(start, goal, written, labels)._replace(data=data)


def structure_objective(
    config: StructureTuneConfig, potential: Potential, loss: Loss, data: StructureSets, widened: int = 0
) -> Objective:
    """The distance of relaxed structures from their targets; held-out ones are relaxed to convergence.

    Arrays that were too narrow grow after the epoch, at most four times; `widened` times they have.
    """
    sets, packed, replay = data.sets, data.packed, data.replay
    pair_names = [pair_name(pair) for pair in sets.train]
    apart = np.array([not is_at_target(pair) for pair in sets.validation])

    def batches_from(start: int) -> Iterator[tuple[Drawn, dict[str, Any]]]:
        shown = ({"structures": one} for one in noisy_batches(packed, config, start))
        if replay is not None:
            others = batches(replay, config.replay.batch_size, seed=config.seed, start=start)
            shown = ({**one, "replay": other} for one, other in zip(shown, others, strict=False))
        return ((drawn(batch), batch) for batch in shown)

    def names(batch: dict[str, Any]) -> list[str]:
        frames = names_of(batch["replay"], replay.sources) if "replay" in batch else []
        return names_of(batch["structures"], pair_names) + frames

    def measure(params: Any, first: Measured | None, watch: Callable) -> Measured:
        pairs, bare = sets.validation, model(params)
        watched = lambda items: watch(items, "relaxing held-out structures", len(pairs))  # noqa: E731
        judgement = judge(potential, bare, pairs, judge_of(config), watched, config.matmul_precision)
        before = judgement if first is None else first["judgement"]
        numbers = summary(judgement, before, config.basin, apart)
        return {**numbers._asdict(), **data.labels.errors(bare), "judgement": judgement}

    def widen(rows: Sequence[Mapping[str, float]]) -> tuple[Objective, tuple[str, ...]] | None:
        best = Path(config.output) / folder.BEST
        advice = "Lower the learning rate, use a smaller max_step of the minimiser, or look at the starts."
        tuning.check_counted(rows, COUNTS, "structure", f"{advice} {best} is the best so far.")
        if widened >= MOST_WIDENED or not sum(row.get("n_overflow", 0) for row in rows):
            return None
        more = data._replace(packed=wider(packed, potential.shells))
        shapes = tuple("/".join(map(str, shape.capacities)) for shape in more.packed.shapes)
        return structure_objective(config, potential, loss, more, widened + 1), shapes

    return Objective(
        loss,
        batches_from,
        names,
        _summarise,
        measure,
        lambda measured: measured[SCORE],
        per_epoch=n_batches(packed, config.batch_size),
        widen=widen,
        fingerprint=fingerprint(sets),
    )


def validations(output: Path) -> list[tuning.Judged]:
    """The rows of validation.csv; the first one with the smallest median structure error is marked as the best."""
    return tuning.validations(output, SCORE)


def run_loss(config: StructureTuneConfig, potential: Potential, replayed: Potential) -> Loss:
    """The loss of a batch {"structures": StructureBatch}, with "replay" if the config has it."""
    objective = objective_of(config)
    make = {"structure": losses.structure_loss, "force": losses.target_force_loss, "newton": losses.newton_loss}[
        objective.type
    ]
    parts = {"structures": (1.0, make(potential, objective))}
    if config.replay:
        on_labels = losses.label_loss(replayed, config.replay.loss)
        parts["replay"] = (config.replay.weight, lambda params, batch, ratio: on_labels(model(params), batch, ratio))
    return losses.weighted_sum(parts)


def model(params: Any) -> Any:
    """The potential's parameters, without the numbers of a minimiser."""
    return params.potential if isinstance(params, Learned) else params


def _summarise(pending: Pending, params: Any) -> dict[str, float]:
    """The metrics under short names; sums over labels become errors; and the numbers that a minimiser has learned."""
    learned = jax.device_get(params.minimiser) if isinstance(params, Learned) else {}
    return tuning.summarise(pending, "structures") | {
        f"minimiser/{key}" + ("" if np.ndim(x) == 0 else " (norm)"): float(np.linalg.norm(x) if np.ndim(x) else x)
        for key, x in learned.items()
    }


def _times_widened(output: Path, done: int) -> int:
    """The number of times that arrays grew up to a step: after each whole epoch in which neighbours were missing."""
    epochs: dict[float, list[float]] = {}
    for row in until(output / HISTORY, done):
        epochs.setdefault(row["epoch"], []).append(row.get("n_overflow", 0))
    length = len(epochs.get(1, ()))  # where the first epoch is not over, nothing has grown
    return min(MOST_WIDENED, sum(len(counts) == length and sum(counts) > 0 for counts in epochs.values()))


def _save_model(
    config: StructureTuneConfig, potential: Potential, path: Path, params: Any, step: int, score: float | None
) -> None:
    facts = {"pairs": list(config.pairs), "objective": config.objective.type, SCORE: score}
    tuning.save_model(config, potential, facts, path, model(params), step)


def _keep(output: Path, sets: PairSets, first: Measured | None, best: Measured) -> None:
    """The held-out structures, their numbers and themselves, before and of the best model."""
    before, after = (best if first is None else first)["judgement"], best["judgement"]
    write_structures(output / STRUCTURES, sets.validation, before, after)
    write_ends(output / ENDS, sets.validation, before, after)


def _finish(output: Path, sets: PairSets, params: Any, best: Best) -> Iterator[Path]:
    """The numbers that the minimiser has learned, and the plot of the best model."""
    if isinstance(params, Learned):
        numbers = jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), params.minimiser)
        checkpoints.write_atomically(output / MINIMISER, json.dumps(numbers, indent=1).encode())
        yield output / MINIMISER
    ends = [read_structures(output / STRUCTURES, when).dq for when in ("before", "after")]
    names, quantity = [pair_name(pair) for pair in sets.validation], "structure error Dq (amu$^{1/2}$ Å)"
    title = f"{{}} held-out structures relaxed to convergence; after: best model, step {best.step}"
    if tuning.plot_errors(output / PLOT, names, ends, quantity, title):
        yield output / PLOT
