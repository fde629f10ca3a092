"""A whole run of training on labels as a stream of events; whoever reads it prints, plots or ignores them."""

import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lamjax import checkpoints, pytree
from lamjax.data import Frame, Packed, Plan, batches, pack, plan, read, set_bias, set_statistics
from lamjax.losses import Loss, errors, label_loss
from lamjax.potential import Potential, build
from lamjax.training.checkpoints import restore_state, save_state, saved_steps
from lamjax.training.config import TrainConfig, to_json
from lamjax.training.errors import predictions
from lamjax.training.fit import NonFiniteError, add, evaluate, fit
from lamjax.training.schedules import Schedule, schedule
from lamjax.training.state import TrainState, init, optimizer
from lamjax.training.step import unknown_names

STATES, MODEL, CURVE, CONFIG = "states", "model.lamjax", "lcurve.csv", "config.json"
_ERRORS = ("rmse_e", "rmse_f", "rmse_v", "mae_e", "mae_f", "mae_v")
COLUMNS = (
    *("step", "lr", "seconds", "loss", "grad_norm"),
    *(f"{name}_train" for name in _ERRORS),
    *(f"{name}_validation" for name in _ERRORS),
)


class Run(NamedTuple):
    """Everything a run needs before its first step."""

    config: TrainConfig
    potential: Potential
    state: TrainState
    loss: Loss
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    frames: list[Frame]
    held_out: list[Frame]
    plan: Plan
    train: Packed
    validation: Packed | None


class Compiled(NamedTuple):
    """A shape was seen for the first time."""

    n: int
    n_atoms: int
    capacities: tuple[int, ...]
    batch_size: int
    seconds: float  # compilation and the first step


class Record(NamedTuple):
    """Where the run stands. Errors as from `losses.errors`; those of training are means since the last record."""

    step: int
    learning_rate: float
    loss: float
    grad_norm: float
    train: dict[str, float]
    validation: dict[str, float]  # empty where it was not measured
    seconds: float  # since the beginning
    remaining: float  # seconds, estimated from the steps since the last record


class Saved(NamedTuple):
    """A state was written."""

    path: Path


def prepare(config: TrainConfig, resume: bool = False) -> Run:
    """Read the data, plan the shapes, make the model and its statistics, or take up the last state of the output.

    Raises ValueError for an output folder that holds states already, unless `resume`.
    """
    output = Path(config.output)
    done = saved_steps(output / STATES)
    if done and not resume:
        raise ValueError(
            f"{output} holds the states of a run (up to step {done[-1]}). Add --resume to go on, or choose another "
            "output folder."
        )
    potential, params = _model(config)
    if unknown := unknown_names(params, config.freeze):
        raise ValueError(f"freeze: no parameter is called {', '.join(unknown)}. Known: {', '.join(_groups(params))}.")
    frames, held_out = (_labelled(paths, potential) for paths in (config.train, config.validation))
    shapes = plan([*frames, *held_out], potential.shells, config.max_programs)
    packed = pack(frames, shapes, config.precision)
    validation = pack(held_out, shapes, config.precision) if held_out else None
    learning_rate = schedule(config.schedule, config.steps)
    updates = optimizer(config.optimizer, learning_rate)
    if not done:
        params = _with_statistics(config, potential, params, frames, packed)
    state = init(params, updates, ema=config.ema_decay is not None)
    if done:
        state = restore_state(output / STATES, state)
    loss = label_loss(potential, config.loss)
    return Run(config, potential, state, loss, updates, learning_rate, frames, held_out, shapes, packed, validation)


def events(run: Run) -> Iterator[Compiled | Record | Saved]:
    """Train to the end of the run; the model bundle is written last.

    A state is saved at intervals, at the end, and before NonFiniteError (the last good one) is raised.
    """
    config, output = run.config, Path(run.config.output)
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.write_atomically(output / CONFIG, to_json(config).encode())
    state = run.state
    done = int(state.step)
    _begin_curve(output / CURVE, done)
    begin = time.monotonic()
    pending, last = [], (begin, done)
    try:
        for state, metrics, news in _steps(run, done):
            done += 1
            if news is not None:
                yield news
                last = (time.monotonic(), done)  # compilation says nothing about the time that is left
            pending.append(metrics)
            if done % config.print_every == 0 or done == config.steps:
                record = _record(run, state, done, pending, begin, last)
                _append(output / CURVE, record)
                yield record
                pending, last = [], (time.monotonic(), done)
            if done % config.save_every == 0 or done == config.steps:
                yield Saved(save_state(output / STATES, state, config.keep))
    except NonFiniteError:
        save_state(output / STATES, state, config.keep)
        raise
    card = {"trained_on": list(config.train), "steps": done, "seed": config.seed, "precision": config.precision}
    checkpoints.save(output / MODEL, run.potential, result(state), card)
    yield Saved(output / MODEL)


def result(state: TrainState) -> Any:
    """The parameters that a run is about: the running mean where there is one."""
    return state.params if state.ema is None else state.ema


def _steps(run: Run, done: int):
    """(state, metrics, Compiled or None) for every step that is left."""
    config = run.config
    stream = batches(run.train, config.batch_size, seed=config.seed, start=done)
    shapes: list[tuple] = []

    def limited():
        for _, batch in zip(range(config.steps - done), stream, strict=False):
            shapes.append((batch.system.n_atoms, batch.neighbors.capacities, len(batch.frame)))
            yield batch

    seen: set[tuple] = set()
    start = config.schedule.start_lr
    stepping = fit(
        run.loss,
        run.state,
        run.optimizer,
        limited(),
        lr_ratio=lambda step: run.learning_rate(step) / start,
        freeze=config.freeze,
        ema_decay=config.ema_decay,
        sources=run.train.sources,
    )
    before = time.monotonic()
    for state, metrics in stepping:
        shape, news = shapes.pop(), None
        if shape not in seen:
            seen.add(shape)
            jax.block_until_ready(metrics["loss"])
            news = Compiled(len(seen), *shape, time.monotonic() - before)
        yield state, metrics, news
        before = time.monotonic()


def _record(run: Run, state: TrainState, done: int, pending: list, begin: float, last: tuple[float, int]) -> Record:
    sums = add(pending)
    now = time.monotonic()  # after the device is done with the steps
    pace = (now - last[0]) / max(done - last[1], 1)
    validation = {}
    if run.validation and (done % run.config.validate_every == 0 or done == run.config.steps):
        held_out = batches(run.validation, run.config.batch_size, seed=None, epochs=1)
        validation = evaluate(run.loss, result(state), held_out)
    return Record(
        step=done,
        learning_rate=float(run.learning_rate(done - 1)),
        loss=float(sums["loss"]) / len(pending),
        grad_norm=float(sums["grad_norm"]) / len(pending),
        train=errors(sums),
        validation=validation,
        seconds=time.monotonic() - begin,
        remaining=pace * (run.config.steps - done),
    )


def _model(config: TrainConfig):
    """The potential and its first parameters."""
    dtype = np.dtype(config.precision)
    if config.base is not None:
        potential, params = checkpoints.load(config.base, config.head, dtype)
        if potential.head is None:
            raise ValueError(f"{config.base} has several heads; set `head` to one of {potential.config.head_names}.")
        return potential, params
    potential = build(config.model, config.head)
    if potential.head is None:
        raise ValueError(f"The model has several heads; set `head` to one of {', '.join(config.model.head_names)}.")
    return potential, potential.init(jax.random.key(config.seed), dtype)


def _labelled(paths, potential: Potential) -> list[Frame]:
    """The frames of the files; ValueError for one without any label."""
    frames = read(paths, elements=potential.elements)
    for frame in frames:
        if not frame.labels.weights.any():
            raise ValueError(
                f"{frame.source}: the frame has no energy, forces or stress label to train on. Looked for "
                "REF_<label> and ASE's results. Rename the keys or remove the frame."
            )
    return frames


def _with_statistics(config: TrainConfig, potential: Potential, params, frames, packed: Packed):
    if config.base is None:
        return set_statistics(potential, params, frames)
    if config.bias == "keep":
        return params
    if config.bias == "set":
        return set_bias(potential, params, frames)
    found = predictions(potential, params, packed, config.batch_size)
    return set_bias(potential, params, frames, np.array([float(p.energy) for p in found]))


def _groups(params) -> list[str]:
    """The first names in the paths of the parameters."""
    names = [pytree.path_name(path).split("/") for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return sorted({"/".join(name[:2]) for name in names})


def _begin_curve(path: Path, done: int) -> None:
    """A header, and of an earlier curve the rows up to the step from which the run goes on."""
    rows = []
    if done and path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _append(path: Path, record: Record) -> None:
    row = {"step": record.step, "lr": record.learning_rate, "seconds": round(record.seconds, 3)}
    row |= {"loss": record.loss, "grad_norm": record.grad_norm}
    row |= {f"{name}_train": value for name, value in record.train.items()}
    row |= {f"{name}_validation": value for name, value in record.validation.items()}
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, restval="").writerow(row)
