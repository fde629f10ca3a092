"""Records of a run's progress, and the tables that hold them on disk."""

import contextlib
import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax.files import write_atomically

HISTORY, VALIDATION = "history.csv", "validation.csv"


class RunRecord(NamedTuple):
    """Progress and errors of a run. Errors as from `losses.errors`; those of training are means since the last record.

    In a run with several tasks the names of errors are "rmse_e:task".
    """

    step: int  # updates
    learning_rate: float
    loss: float = np.nan  # NaN before the first step
    grad_norm: float = np.nan
    train: dict[str, float] = {}
    validation: dict[str, Any] = {}  # empty where it was not measured
    seconds: float = 0.0  # since the beginning
    remaining: float = np.nan  # seconds, estimated from the steps since the last record; NaN while that is unknown
    structures: float = 0.0  # per second, since the last record; 0 while unknown
    atoms: float = 0.0  # per second
    wait: float = 0.0  # share of the time that steps waited for batches
    best: bool = False  # no earlier validation had as small a score


class Tables(NamedTuple):
    """Functions that write and read the records of a run."""

    writing: Callable[
        [int], AbstractContextManager[Callable[[RunRecord], None]]
    ]  # updates done -> a function that writes a record
    validations: Callable[[int], list[tuple[int, dict[str, float]]]]  # (step, errors) of those up to a step
    epoch: Callable[[int, int], list[dict[str, float]]]  # (step, updates of an epoch) -> summaries since its beginning


def no_tables() -> Tables:
    """Tables that keep nothing."""
    return Tables(lambda done: contextlib.nullcontext(lambda record: None), lambda done: [], lambda done, per_epoch: [])


def two_tables(
    folder: Path, per_epoch: int | None = None, train: Sequence[str] = (), validation: Sequence[str] = ()
) -> Tables:
    """history.csv, a line for each record, and validation.csv, a line for each validation.

    `train` and `validation` are columns that a first line may not have.
    """
    history, validations = folder / HISTORY, folder / VALIDATION

    def epoch(step: int) -> dict[str, int]:
        return {} if per_epoch is None else {"epoch": -(-step // per_epoch)}

    def write(record: RunRecord) -> None:
        if record.step:
            losses = {"loss": record.loss, "grad_norm": record.grad_norm}
            start = {"step": record.step, **epoch(record.step), "lr": record.learning_rate}
            append(history, {**start, **record.train, **losses}, train)
        if record.validation:
            numbers = {key: x for key, x in record.validation.items() if isinstance(x, int | float)}
            append(validations, {"step": record.step, **epoch(record.step), **numbers}, validation)

    @contextlib.contextmanager
    def writing(done: int) -> Iterator[Callable[[RunRecord], None]]:
        for path in (history, validations):
            if not until(path, done):
                path.unlink(missing_ok=True)
            else:
                begin(path, done)
        yield write

    def measured(done: int) -> list[tuple[int, dict[str, float]]]:
        return [(int(row.pop("step")), row) for row in until(validations, done)]

    def since(done: int, length: int) -> list[dict[str, float]]:
        return [row for row in until(history, done) if row["step"] > done // length * length]

    return Tables(writing, measured, since)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none if there is no file; a row that was cut off by a kill is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def until(path: Path, done: int) -> list[dict[str, float]]:
    """The numbers in the rows up to the step from which a run continues; none of a run that begins."""
    rows = read(path) if done else []
    return [{key: float(x) for key, x in row.items() if x} for row in rows if int(row["step"]) <= done]


def begin(path: Path, done: int, header: Sequence[str] | None = None) -> None:
    """A header, and of an earlier table the rows up to the step from which the run continues."""
    rows = [row for row in read(path) if int(row["step"]) <= done] if done else []
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if header is None else header, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def append(path: Path, row: Mapping[str, float], more: Sequence[str] = ()) -> None:
    """One more line; the first one brings the columns, and `more` of them."""
    new = not path.is_file()
    with path.open("a+", newline="") as file:
        file.seek(0)
        header = list(dict.fromkeys([*row, *more])) if new else next(csv.reader(file))
        writer = csv.DictWriter(file, header, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


class Speed:
    """Structures, atoms and batches per second, between two moments at which the device is idle."""

    def __init__(self) -> None:
        self.begin, self.last = time.monotonic(), (0.0, 0.0, 0.0)
        self.restart()
        self.mark()

    def restart(self) -> None:
        """Begin to count anew; compilation and validation are left out in this way."""
        self.since, self.structures, self.atoms, self.batches = time.monotonic(), 0, 0, 0

    def mark(self) -> None:
        """A step is done."""
        self.step = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last step."""
        return time.monotonic() - self.step

    def count(self, structures: int, atoms: int) -> None:
        """Count one more batch."""
        n = jax.process_count()  # all of them are assumed to be alike
        self.structures, self.atoms = self.structures + n * structures, self.atoms + n * atoms
        self.batches += 1

    def speeds(self) -> tuple[float, float, float]:
        """Structures, atoms and batches per second since the last restart; the last ones known if there was no step."""
        if self.batches:
            seconds = max(time.monotonic() - self.since, 1e-9)
            self.last = (self.structures / seconds, self.atoms / seconds, self.batches / seconds)
        return self.last


def means(rows: Sequence[Mapping[str, float]], counts: Iterable[str]) -> tuple[dict[str, float], dict[str, int]]:
    """(means over the structures, `counts` above 0) of the records of an epoch."""
    weights = np.array([row.get("n_structures", 1) for row in rows])
    weights = weights if weights.sum() else np.ones(len(rows))
    summed = {key: int(sum(row.get(key, 0) for row in rows)) for key in counts}
    apart = ("step", "epoch", "lr", "n_structures", *summed)
    known = [key for key in rows[0] if key not in apart and all(key in row for row in rows)]
    averages = {key: float(np.average([row[key] for row in rows], weights=weights)) for key in known}
    return averages, {key: n for key, n in summed.items() if n}
