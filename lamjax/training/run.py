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
from lamjax.data import Plan, batches
from lamjax.losses import Loss, errors, multitask_loss
from lamjax.potential import Potential, build
from lamjax.training.checkpoints import restore_state, save_state, saved_steps
from lamjax.training.config import TrainConfig, to_json
from lamjax.training.fit import NonFiniteError, add, evaluate, fit
from lamjax.training.schedules import Schedule, schedule
from lamjax.training.state import TrainState, init, optimizer
from lamjax.training.step import unknown_names
from lamjax.training.tasks import Task, read_tasks, task_batches, with_statistics

STATES, MODEL, CURVE, CONFIG = "states", "model.lamjax", "lcurve.csv", "config.json"
_ERRORS = ("rmse_e", "rmse_f", "rmse_v", "mae_e", "mae_f", "mae_v")


class Run(NamedTuple):
    """Everything a run needs before its first step."""

    config: TrainConfig
    potential: Potential  # with the head that is trained, where it is only one
    state: TrainState
    loss: Loss  # of a batch {task: batch}
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    tasks: tuple[Task, ...]  # one of name "" unless the config has `tasks`

    @property
    def plan(self) -> Plan:
        """The shapes that all tasks share."""
        return self.tasks[0].train.plan


class Compiled(NamedTuple):
    """A shape was seen for the first time (by this task)."""

    n: int
    n_atoms: int
    capacities: tuple[int, ...]
    batch_size: int
    seconds: float  # compilation and the first step
    task: str = ""


class Record(NamedTuple):
    """Where the run stands. Errors as from `losses.errors`; those of training are means since the last record.

    In a run with several tasks the names of errors are "rmse_e:task".
    """

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
    tasks = read_tasks(config, potential)
    learning_rate = schedule(config.schedule, config.steps)
    updates = optimizer(config.optimizer, learning_rate, by_head=bool(config.tasks))
    if not done:
        params = with_statistics(config, potential, params, tasks)
    state = init(params, updates, ema=config.ema_decay is not None)
    if done:
        state = restore_state(output / STATES, state)
    loss = multitask_loss({task.name: task.loss for task in tasks})
    return Run(config, potential, state, loss, updates, learning_rate, tasks)


def events(run: Run) -> Iterator[Compiled | Record | Saved]:
    """Train to the end of the run; the model bundle is written last.

    A state is saved at intervals, at the end, and before NonFiniteError (the last good one) is raised.
    """
    config, output = run.config, Path(run.config.output)
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.write_atomically(output / CONFIG, to_json(config).encode())
    state = run.state
    done = int(state.step)
    columns = curve_columns([task.name for task in run.tasks])
    _begin_curve(output / CURVE, done, columns)
    begin = time.monotonic()
    pending, last = [], (begin, done)
    try:
        for state, metrics, task, news in _steps(run, done):
            done += 1
            if news is not None:
                yield news
                last = (time.monotonic(), done)  # compilation says nothing about the time that is left
            pending.append((task, metrics))
            if done % config.print_every == 0 or done == config.steps:
                record = _record(run, state, done, pending, begin, last)
                _append(output / CURVE, record, columns)
                yield record
                pending, last = [], (time.monotonic(), done)
            if done % config.save_every == 0 or done == config.steps:
                yield Saved(save_state(output / STATES, state, config.keep))
    except NonFiniteError:
        save_state(output / STATES, state, config.keep)
        raise
    files = {name: list(task.train) for name, task in config.tasks.items()} or list(config.train)
    card = {"trained_on": files, "steps": done, "seed": config.seed, "precision": config.precision}
    checkpoints.save(output / MODEL, run.potential, result(state), card)
    yield Saved(output / MODEL)


def result(state: TrainState) -> Any:
    """The parameters that a run is about: the running mean where there is one."""
    return state.params if state.ema is None else state.ema


def _steps(run: Run, done: int):
    """(state, metrics, task, Compiled or None) for every step that is left."""
    config = run.config
    stream = task_batches(run.tasks, config.seed, done)
    shapes: list[tuple] = []

    def limited():
        for _, tagged in zip(range(config.steps - done), stream, strict=False):
            ((task, batch),) = tagged.items()
            shapes.append((batch.system.n_atoms, batch.neighbors.capacities, len(batch.frame), task))
            yield tagged

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
        sources={task.name: task.train.sources for task in run.tasks},
    )
    before = time.monotonic()
    for state, metrics in stepping:
        shape, news = shapes.pop(), None
        if shape not in seen:
            seen.add(shape)
            jax.block_until_ready(metrics["loss"])
            news = Compiled(len(seen), *shape[:3], time.monotonic() - before, shape[3])
        yield state, metrics, shape[3], news
        before = time.monotonic()


def _record(run: Run, state: TrainState, done: int, pending: list, begin: float, last: tuple[float, int]) -> Record:
    by_task = {task.name: [metrics for name, metrics in pending if name == task.name] for task in run.tasks}
    sums = {name: add(found) for name, found in by_task.items() if found}
    now = time.monotonic()  # after the device is done with the steps
    pace = (now - last[0]) / max(done - last[1], 1)
    validation = {}
    if done % run.config.validate_every == 0 or done == run.config.steps:
        validation = {task.name: _validate(run, task, state) for task in run.tasks if task.validation}
    return Record(
        step=done,
        learning_rate=float(run.learning_rate(done - 1)),
        loss=sum(float(s["loss"]) for s in sums.values()) / len(pending),
        grad_norm=sum(float(s["grad_norm"]) for s in sums.values()) / len(pending),
        train=_named({name: errors(s) for name, s in sums.items()}),
        validation=_named(validation),
        seconds=time.monotonic() - begin,
        remaining=pace * (run.config.steps - done),
    )


def _validate(run: Run, task: Task, state: TrainState) -> dict[str, float]:
    held_out = batches(task.validation, task.batch_size, seed=None, epochs=1)
    return evaluate(run.loss, result(state), ({task.name: batch} for batch in held_out))


def _named(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The errors of all tasks as one dict: "rmse_e:task", or "rmse_e" for the only one."""
    return {f"{key}:{task}" if task else key: x for task, values in found.items() for key, x in values.items()}


def _model(config: TrainConfig):
    """The potential and its first parameters. The head is chosen here unless tasks choose theirs."""
    dtype = np.dtype(config.precision)
    if config.base is not None:
        potential, params = checkpoints.load(config.base, config.head, dtype)
    else:
        potential = build(config.model, config.head)
        params = potential.init(jax.random.key(config.seed), dtype)
    if potential.head is None and not config.tasks:
        raise ValueError(
            f"{config.base or 'The model'} has several heads; set `head` to one of "
            f"{', '.join(potential.config.head_names)}, or give `tasks` to train several."
        )
    return potential, params


def _groups(params) -> list[str]:
    """The first names in the paths of the parameters."""
    names = [pytree.path_name(path).split("/") for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return sorted({"/".join(name[:2]) for name in names})


def curve_columns(tasks: list[str]) -> list[str]:
    """The header of the curve: errors of training and validation, "rmse_e_train:task" for the tasks of a run."""
    names = [f"{name}_{of}" for of in ("train", "validation") for name in _ERRORS]
    ends = [f":{task}" if task else "" for task in tasks]
    return ["step", "lr", "seconds", "loss", "grad_norm", *(name + end for end in ends for name in names)]


def _begin_curve(path: Path, done: int, columns: list[str]) -> None:
    """A header, and of an earlier curve the rows up to the step from which the run goes on."""
    rows = []
    if done and path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _append(path: Path, record: Record, columns: list[str]) -> None:
    row = {"step": record.step, "lr": record.learning_rate, "seconds": round(record.seconds, 3)}
    row |= {"loss": record.loss, "grad_norm": record.grad_norm}
    for of, found in (("train", record.train), ("validation", record.validation)):
        for name, value in found.items():
            kind, colon, task = name.partition(":")
            row[f"{kind}_{of}{colon}{task}"] = value
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns, restval="").writerow(row)
