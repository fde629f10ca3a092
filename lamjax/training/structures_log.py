"""What a fine-tuning on structures writes of itself, and reads again when it goes on."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lamjax import checkpoints
from lamjax.losses import Learned
from lamjax.training import curve
from lamjax.training.setup import BEST
from lamjax.training.state import TrainState, result
from lamjax.training.structures_config import judge_of
from lamjax.training.structures_data import is_at_target
from lamjax.training.structures_judge import Summary, judge, read_structures, summary, write_structures
from lamjax.training.structures_setup import HISTORY, STRUCTURES, VALIDATION, TuneRun, model, past

COUNTS = {
    "n_dropped": "exploded or became infinite on the way, and did not count",
    "n_overflow": "had more neighbours than slots on the way",
    "n_gated": "did not converge, and had no implicit gradient",
    "n_negative": "had a negative curvature where the gradient is solved for",
    "n_damped": "needed a larger damping",
}  # of structures, summed over an epoch
Watch = Callable[[Iterator, str, int], Iterator]  # (what comes, description, total) -> the same


class Epoch(NamedTuple):
    """All pairs have been seen once more."""

    number: int  # from 1
    step: int
    means: dict[str, float]  # loss and metrics
    counts: dict[str, int]  # of `COUNTS`, those above 0


class Judged(NamedTuple):
    """The held-out structures were relaxed; `step` 0 is before training."""

    step: int
    summary: Summary
    errors: dict[str, float]  # on labelled frames, see `Labels.errors`
    best: bool  # no earlier one had a smaller median structure error


class Log:
    """What a run writes of itself, and what it knows of its past."""

    def __init__(self, run: TuneRun):
        self.run, self.output = run, Path(run.config.output)
        self.rows = past(self.output / HISTORY, run.done)
        self.scores = {int(row["step"]): row["dq_median"] for row in past(self.output / VALIDATION, run.done)}
        self.before = read_structures(self.output / STRUCTURES, "before") if self.scores else None

    @property
    def best(self) -> int:
        """The step of the least median structure error, the first of equals."""
        return min(self.scores, key=lambda step: (self.scores[step], step))

    @property
    def is_over(self) -> bool:
        """Whether there were `patience` validations without a better one."""
        patience, steps = self.run.config.patience, sorted(self.scores)
        return patience is not None and len(steps) - 1 - steps.index(self.best) >= patience

    def open(self) -> None:
        """Drop what a killed run wrote after its last state."""
        for file, keep in ((HISTORY, self.rows), (VALIDATION, self.scores)):
            path = self.output / file
            if not keep:
                path.unlink(missing_ok=True)
            elif path.is_file():
                with path.open(newline="") as opened:
                    header = next(csv.reader(opened))
                curve.begin(path, self.run.done, header)

    def stepped(self, state: TrainState, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """One more line of history.csv."""
        rate = float(self.run.learning_rate(step - 1))
        row = {"step": step, "epoch": -(-step // self.run.packing.per_epoch), "lr": rate, **metrics}
        if isinstance(state.params, Learned):
            row |= _learned_numbers(state.params)
        replay = [f"replay_rmse_{kind}" for kind in "efvs"] if self.run.replay is not None else []
        _append(self.output / HISTORY, row, [*row, *(key for key in replay if key not in row)])
        self.rows.append(row)
        return row

    def epoch(self, number: int, step: int) -> Epoch:
        """The lines of an epoch put together; ValueError if no structure of it counted."""
        rows = [row for row in self.rows if row["epoch"] == number]
        counts = {key: int(sum(row.get(key, 0) for row in rows)) for key in COUNTS}
        if sum(row["n_structures"] for row in rows) == 0:
            raise ValueError(
                f"Not one structure of epoch {number} counted: {json.dumps(counts)}. Lower the learning rate, use a "
                f"smaller max_step of the minimiser, or look at the starts. {self.output / BEST} is the best so far."
            )
        weights = np.array([row["n_structures"] for row in rows])
        means = {
            key: float(np.average([row[key] for row in rows], weights=weights))
            for key in rows[0]
            if key not in ("step", "epoch", *COUNTS, "n_structures") and all(key in row for row in rows)
        }
        return Epoch(number, step, means, {key: n for key, n in counts.items() if n})

    def judged(self, state: TrainState, step: int, watch: Watch | None) -> Judged:
        """The held-out structures relaxed with the present parameters, and what is left behind of it."""
        run, pairs, params = self.run, self.run.sets.validation, model(result(state))
        found = judge(
            run.potential,
            params,
            pairs,
            judge_of(run.config),
            (lambda items: watch(items, f"relaxing held-out structures, step {step}", len(pairs))) if watch else iter,
            run.config.matmul_precision,
        )
        self.before = found if step == 0 else self.before
        apart = np.array([not is_at_target(pair) for pair in pairs])
        told, errors = summary(found, self.before, run.config.basin, apart), run.labels.errors(params)
        best = step == 0 or told.dq_median < self.scores[self.best]
        if best:
            save_model(run, state, self.output / BEST, step, told.dq_median)
            write_structures(self.output / STRUCTURES, pairs, self.before, found)
        row = {"step": step, "epoch": step // run.packing.per_epoch, **told._asdict(), **errors}
        _append(self.output / VALIDATION, row, [*row, *(c for c in run.labels.columns if c not in row)])
        self.scores[step] = told.dq_median
        return Judged(step, told, errors, best)


def validations(output: Path) -> list[Judged]:
    """What validation.csv says, with the first of the best marked as such."""
    rows = past(output / VALIDATION, sys.maxsize)
    best = min((row["dq_median"] for row in rows), default=None)
    found: list[Judged] = []
    for row in rows:
        errors = {key: x for key, x in row.items() if key not in ("step", "epoch", *Summary._fields)}
        first = row["dq_median"] == best and not any(judged.best for judged in found)
        found.append(Judged(int(row["step"]), Summary(*(row[key] for key in Summary._fields)), errors, first))
    return found


def save_model(run: TuneRun, state: TrainState, path: Path, step: int, dq_median: float) -> None:
    config = run.config
    card = {"base": config.base, "pairs": list(config.pairs), "objective": config.objective.type, "steps": step}
    card |= {"seed": config.seed, "precision": config.precision, "dq_median": dq_median}
    checkpoints.save(path, run.potential, model(result(state)), card)


def _learned_numbers(params: Learned) -> dict[str, float]:
    """The minimiser's numbers for a line of a table; of arrays the norm."""
    values = jax.device_get(params.minimiser)
    return {
        f"minimiser/{key}" + ("" if np.ndim(x) == 0 else " (norm)"): float(np.linalg.norm(x) if np.ndim(x) else x)
        for key, x in values.items()
    }


def _append(path: Path, row: dict[str, float], columns: Sequence[str]) -> None:
    """One more line; the first one brings the columns."""
    new = not path.is_file()
    with path.open("a+", newline="") as file:
        file.seek(0)
        header = columns if new else next(csv.reader(file))
        writer = csv.DictWriter(file, header, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)
