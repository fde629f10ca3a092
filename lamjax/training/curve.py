"""The learning curve of a run on labels: one table of errors of training and validation."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lamjax.training.records import RunRecord, Tables, append, begin, read

CURVE = "lcurve.csv"
_ERRORS = [f"{kind}_{quantity}" for kind in ("rmse", "mae") for quantity in "efvs"]


def tables(path: Path, tasks: Sequence[str]) -> Tables:
    """The curve of a run with these tasks ("" for the only one)."""

    def known(done: int) -> list[tuple[int, dict[str, float]]]:
        return [(step, errors) for step, errors in validations(path, tasks) if step <= done] if done else []

    return Tables(functools.partial(writing, path, tasks), known, lambda done, length: [])


def columns(tasks: Sequence[str]) -> list[str]:
    """The header of the curve: errors of training and validation, "rmse_e_train:task" for the tasks of a run."""
    names = [f"{name}_{split}" for split in ("train", "validation") for name in _ERRORS]
    ends = [f":{task}" if task else "" for task in tasks]
    speed = ["seconds", "structures_per_s", "atoms_per_s", "wait_fraction"]
    return ["step", "lr", *speed, "loss", "grad_norm", *(name + end for end in ends for name in names)]


@contextlib.contextmanager
def writing(path: Path, tasks: Sequence[str], done: int) -> Iterator[Callable[[RunRecord], None]]:
    """A function that adds a record to the curve, of which rows after step `done` are dropped."""
    begin(path, done, columns(tasks))
    yield lambda record: append(path, _row(record))


def score(monitor: str, errors: Mapping[str, float], probabilities: Mapping[str, float]) -> float | None:
    """The mean over tasks, by probability, of the monitored validation error; None where no task has it."""
    keys = {task: f"{monitor}:{task}" if task else monitor for task in probabilities}
    weights = {task: weight for task, weight in probabilities.items() if errors.get(keys[task]) is not None}
    return sum(w * errors[keys[task]] for task, w in weights.items()) / sum(weights.values()) if weights else None


def validations(path: Path, tasks: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """(step, validation errors) of the rows in which they were measured."""
    measured = []
    for row in read(path):
        errors = {
            f"{name}:{task}" if task else name: row.get(f"{name}_validation:{task}" if task else f"{name}_validation")
            for task in tasks
            for name in _ERRORS
        }
        if known := {name: float(value) for name, value in errors.items() if value}:
            measured.append((int(row["step"]), known))
    return measured


def _row(record: RunRecord) -> dict[str, float]:
    row = {"step": record.step, "lr": record.learning_rate, "seconds": round(record.seconds, 3)}
    row |= {"structures_per_s": round(record.structures, 3), "atoms_per_s": round(record.atoms, 2)}
    row |= {"wait_fraction": round(record.wait, 4), "loss": record.loss, "grad_norm": record.grad_norm}
    for split, errors in (("train", record.train), ("validation", record.validation)):
        for name, value in errors.items():
            kind, colon, task = name.partition(":")
            row[f"{kind}_{split}{colon}{task}"] = value
    return row
