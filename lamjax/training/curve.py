"""The learning curve of a run: rows of a CSV file, and TensorBoard for those who want it."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamjax.reports.files import write_atomically

_ERRORS = [f"{kind}_{of}" for kind in ("rmse", "mae") for of in "efvs"]


class Record(NamedTuple):
    """Where a run stands. Errors as from `losses.errors`; those of training are means since the last record.

    In a run with several tasks the names of errors are "rmse_e:task".
    """

    step: int  # updates
    learning_rate: float
    loss: float
    grad_norm: float
    train: dict[str, float]
    validation: dict[str, float]  # empty where it was not measured
    seconds: float  # since the beginning
    remaining: float  # seconds, estimated from the steps since the last record; NaN while only compilations were seen
    structures: float = 0.0  # per second, since the last record; 0 while unknown
    atoms: float = 0.0  # per second
    wait: float = 0.0  # share of the time that steps waited for batches


def columns(tasks: Sequence[str]) -> list[str]:
    """The header of the curve: errors of training and validation, "rmse_e_train:task" for the tasks of a run."""
    names = [f"{name}_{of}" for of in ("train", "validation") for name in _ERRORS]
    ends = [f":{task}" if task else "" for task in tasks]
    speed = ["seconds", "structures_per_s", "atoms_per_s", "wait_fraction"]
    return ["step", "lr", *speed, "loss", "grad_norm", *(name + end for end in ends for name in names)]


@contextlib.contextmanager
def writing(path: Path, tasks: Sequence[str], done: int, board: bool = False) -> Iterator[Callable[[Record], None]]:
    """A function that adds a record to the curve (of which rows after step `done` are dropped), and to TensorBoard."""
    header = columns(tasks)
    begin(path, done, header)
    with contextlib.closing(tensorboard(path.parent / "tensorboard")) if board else contextlib.nullcontext() as writer:

        def write(record: Record) -> None:
            append(path, record, header)
            if writer is not None:
                write_scalars(writer, record)

        yield write


def begin(path: Path, done: int, header: Sequence[str]) -> None:
    """A header, and of an earlier curve the rows up to the step from which the run goes on."""
    rows = [row for row in read(path) if int(row["step"]) <= done] if done else []
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def append(path: Path, record: Record, header: Sequence[str]) -> None:
    """One more row."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, header, restval="").writerow(_row(record))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a curve, none if there is no file; a row that was cut off by a kill is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def score(monitor: str, errors: dict[str, float], probabilities: dict[str, float]) -> float | None:
    """The mean over tasks, by probability, of the monitored validation error; None where no task has it."""
    found = {task: errors.get(f"{monitor}:{task}" if task else monitor) for task in probabilities}
    weights = {task: probabilities[task] for task, value in found.items() if value is not None}
    return sum(w * found[task] for task, w in weights.items()) / sum(weights.values()) if weights else None


def validations(path: Path, tasks: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """(step, validation errors) of the rows in which they were measured."""
    found = []
    for row in read(path):
        errors = {
            f"{name}:{task}" if task else name: row.get(f"{name}_validation:{task}" if task else f"{name}_validation")
            for task in tasks
            for name in _ERRORS
        }
        if known := {name: float(value) for name, value in errors.items() if value}:
            found.append((int(row["step"]), known))
    return found


def tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's files; ValueError if the extra is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            'tensorboard: true needs tensorboardX: pip install "lamjax[tensorboard]", or set it to false.'
        ) from error
    return SummaryWriter(str(folder))


def write_scalars(writer: Any, record: Record) -> None:
    """Every number of a record under its column's name."""
    for name, value in _row(record).items():
        if name != "step":
            writer.add_scalar(name.replace(":", "/"), value, record.step)
    writer.flush()


def _row(record: Record) -> dict[str, float]:
    row = {"step": record.step, "lr": record.learning_rate, "seconds": round(record.seconds, 3)}
    row |= {"structures_per_s": round(record.structures, 3), "atoms_per_s": round(record.atoms, 2)}
    row |= {"wait_fraction": round(record.wait, 4), "loss": record.loss, "grad_norm": record.grad_norm}
    for of, found in (("train", record.train), ("validation", record.validation)):
        for name, value in found.items():
            kind, colon, task = name.partition(":")
            row[f"{kind}_{of}{colon}{task}"] = value
    return row
