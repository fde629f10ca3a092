"""The engine of every run: steps, validations, the best model, patience, states and tables, as a stream of events."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lamjax import checkpoints
from lamjax.data import prefetch
from lamjax.losses import Loss
from lamjax.potential import Potential
from lamjax.reports import outputs
from lamjax.training import folder, loggers, sharding
from lamjax.training.checkpoints import restore_state, save_state
from lamjax.training.config import to_json
from lamjax.training.folder import BEST, MODEL, STATES
from lamjax.training.loops import NonFiniteError, updates
from lamjax.training.objectives import Drawn, Measured, Objective
from lamjax.training.records import HISTORY, VALIDATION, RunRecord, Speed, Tables, no_tables, two_tables
from lamjax.training.run_config import RunConfig
from lamjax.training.schedules import schedule
from lamjax.training.state import TrainState, init, optimizer, result
from lamjax.training.step import TrainStep, make_step


class Best(NamedTuple):
    """The smallest validation score so far, and the number of validations since."""

    step: int
    score: float
    since: int
    last: float | None = None  # the score of the last one


class Outputs(NamedTuple):
    """The outputs of a run beside its states: tables, models, pictures and facts."""

    tables: Tables = no_tables()
    save: Callable[[Path, Any, int, float | None], None] | None = None  # a model: path, parameters, step, score
    keep: Callable[[Measured | None, Measured], None] | None = None  # more of the best: measured first, and of it
    finish: Callable[[Any, Best], Iterable[Path]] = lambda params, best: ()  # at the end: pictures and the like
    config: Any = None  # of which the run was made, for config.json; None: there is none
    facts: Mapping[str, Any] = {}  # for facts.json


class Run(NamedTuple):
    """A run that is ready to begin, or to go on."""

    settings: RunConfig
    objective: Objective
    state: TrainState  # its memory is reused by the first step
    optimizer: optax.GradientTransformation
    step: TrainStep
    done: int = 0  # updates before the first one
    outputs: Outputs = Outputs()
    potential: Potential | None = None
    data: Any = None  # of which the objective was made
    layout: sharding.DeviceLayout | None = None  # where states and batches lie, if not all on one device

    @property
    def config(self) -> Any:
        """The config of the run."""
        return self.outputs.config


class Sharing(NamedTuple):
    """Parameters that heads share in a run, and the devices that share its batches."""

    by_head: bool = False  # a head moves only in steps whose gradient reaches it
    layers: int = 0  # first ones, which are the same in all heads
    layout: sharding.DeviceLayout | None = None  # where states and batches lie, if not all on one device


ALONE = Sharing()  # one head on one device


class Compiled(NamedTuple):
    """A program was seen for the first time."""

    n: int
    shape: str  # of the batch
    seconds: float  # compilation and the first step
    group: str = ""  # the tasks that it is for, where not all share programs


class Epoch(NamedTuple):
    """An epoch has ended: every structure was trained on once more."""

    number: int  # from 1
    step: int
    rows: list[dict[str, float]]  # the records of the epoch: loss, gradient norm, metrics


class Widened(NamedTuple):
    """Neighbours were missing in an epoch: the arrays have more room from now on."""

    step: int
    shapes: tuple[str, ...]


class Saved(NamedTuple):
    """A state, a model or a plot was written."""

    path: Path


class Stopped(NamedTuple):
    """The run ended early: the score did not improve any more."""

    step: int
    best_step: int
    best: float


Event = Compiled | RunRecord | Epoch | Widened | Saved | Stopped


def shared_settings(config: Any, **others: Any) -> RunConfig:
    """The settings of the engine among the fields of another config, with others in their place."""
    names = [f.name for f in fields(RunConfig) if hasattr(config, f.name)]
    return RunConfig(**({name: getattr(config, name) for name in names} | others))


def prepare(
    objective: Objective, params: Any, settings: RunConfig, potential: Potential | None = None, *, resume: bool = False
) -> Run:
    """A run of any objective, from its beginning or from the last state in its output folder.

        goal = training.objective(loss, lambda start: data.batches(packed, 8, start=start))
        run = training.prepare(goal, params, training.RunConfig("tuned", steps=500), potential)
        params = training.follow(run, print)

    Tables are history.csv and validation.csv; models are written if there is a potential that the parameters belong to.
    Raises ValueError for an output folder that holds states already, unless `resume`, and for a state that was made
    with other settings or other data.
    """
    loggers.check(settings.logger)
    outputs.claim_folder(settings.output, (*folder.WRITTEN, HISTORY, VALIDATION))
    saved = folder.begun(settings, resume, settings.accumulate)
    folder.check_names(settings, params)

    def save(path: Path, params: Any, step: int, score: float | None) -> None:
        checkpoints.save(path, potential, params, {"steps": step, "score": score})

    tables = two_tables(Path(settings.output), objective.per_epoch)
    written = Outputs(tables, None if potential is None else save, config=settings)
    return ready(settings, objective, params, written, bool(saved))._replace(potential=potential)


def ready(
    settings: RunConfig, objective: Objective, params: Any, written: Outputs, resumed: bool, sharing: Sharing = ALONE
) -> Run:
    """A run with first parameters, or with the last state of its output folder; nothing is written yet.

    Raises ValueError for data that are not those of the run's beginning.
    """
    if resumed:
        folder.check_data(Path(settings.output), objective.fingerprint)
    rate = schedule(settings.schedule, settings.steps)
    update = optimizer(settings.optimizer, rate, by_head=sharing.by_head, accumulate=settings.accumulate)
    step = make(objective.loss, settings, update, sharing)
    run = restored(settings, objective, params, update, step, resumed)
    run = run._replace(outputs=written, layout=sharing.layout)
    if resumed:
        folder.check_length(run.config, settings.schedule, settings.steps, run.done)
    return run


def restored(
    settings: RunConfig, objective: Objective, params: Any, update: Any, step: TrainStep, resumed: bool
) -> Run:
    """A run with an optimiser and a step of its own, from first parameters or from its last state."""
    state = init(params, update, ema=settings.ema_decay is not None)
    if resumed:
        state = restore_state(Path(settings.output) / STATES, state)
    return Run(settings, objective, state, update, step, int(state.step) // settings.accumulate)


def make(loss: Loss, settings: RunConfig, update: optax.GradientTransformation, sharing: Sharing = ALONE) -> TrainStep:
    """The jitted step of a run."""
    rate = schedule(settings.schedule, settings.steps)
    names = ("freeze", "rates", "ema_decay", "accumulate", "matmul_precision")
    return make_step(
        loss,
        update,
        lr_ratio=lambda n: rate(n) / settings.schedule.start_lr,
        share_layers=sharing.layers,
        sharding=None if sharing.layout is None else sharing.layout.state,
        **{name: getattr(settings, name) for name in names},
    )


Watch = Callable[[Iterator, str, int], Iterator]  # (items, description, total) -> the same items


def events(run: Run, watch: Watch = lambda items, what, n: items) -> Generator[Event, None, Any]:
    """Train to the end of the run; the model bundle is written last. The final parameters are the generator's value.

    A state is saved at intervals, at the end of an epoch and of the run, and before NonFiniteError (the last good one)
    is raised; the model with the least score is best.lamjax. Of several processes the first one writes. `watch` is
    handed what long measurements consist of, and may show their progress.
    """
    if sharding.is_first():
        with _loggers(run) as send:
            if run.config is not None:
                output = Path(run.settings.output)
                folder.write_settings(output, run.config, run.objective.fingerprint, **run.outputs.facts)
            with run.outputs.tables.writing(run.done) as write:
                return (yield from _Course(run, lambda record: (write(record), send(record)), watch).events())
    return (yield from _Course(run, lambda record: None, watch).events())


def _loggers(run: Run) -> AbstractContextManager[Callable[[RunRecord], None]]:
    """The function that sends the records of a run to its loggers; none is opened for a run that is over."""
    names = run.settings.logger if run.done < run.settings.steps else ()
    config = {} if run.config is None else json.loads(to_json(run.config))
    return loggers.writing(names, Path(run.settings.output), config, run.done)


def follow(run: Run, tell: Callable[[Event], None] = lambda event: None) -> Any:
    """Train to the end, handing each event to `tell`; returns the final parameters."""
    training = events(run)
    while True:
        try:
            tell(next(training))
        except StopIteration as end:
            return end.value


class _Course:
    """The mutable part of a run: training state, updates done, best validation, and the objective, which may widen."""

    def __init__(self, run: Run, write: Callable[[RunRecord], None], watch: Watch) -> None:
        self.run, self.settings, self.objective, self.write, self.watch = run, run.settings, run.objective, write, watch
        self.state, self.done, self.best = run.state, run.done, _best_so_far(run)
        self.folder, self.clock = Path(run.settings.output), Speed()
        per_epoch = run.objective.per_epoch  # records of the epoch that has begun
        self.rows = [] if per_epoch is None else run.outputs.tables.epoch(run.done, per_epoch)
        self.programs: set = set()
        self.rate = schedule(self.settings.schedule, self.settings.steps)

    @property
    def is_over(self) -> bool:
        """Whether there were `patience` validations without a better one."""
        return self.settings.patience is not None and self.best.since >= self.settings.patience

    def events(self) -> Generator[Event, None, Any]:
        """The events up to the end of the run."""
        try:
            yield from self._train()
        except NonFiniteError:
            self._save_state()
            raise
        params = result(self.state)
        if sharding.is_first():
            if self.run.outputs.save is not None:
                yield from map(Saved, [self.folder / BEST] if self.settings.validate_first else [])
                self.run.outputs.save(self.folder / MODEL, params, self.done, self.best.last)
                yield Saved(self.folder / MODEL)
            yield from map(Saved, self.run.outputs.finish(params, self.best))
        return params

    def _train(self) -> Iterator[Event]:
        if self.settings.validate_first and self.done == 0:
            measured = self.objective.measure(result(self.state), None, self.watch)
            self.objective = self.objective._replace(first=measured)
            yield self._recorded(RunRecord(0, float(self.rate(0)), validation=measured))
        while self.done < self.settings.steps and not self.is_over:
            yield from self._epoch()

    def _epoch(self) -> Iterator[Event]:
        """Updates to the end of the epoch, or of the run if the objective has no epochs."""
        every, end = self.objective.per_epoch, self.settings.steps
        if every is not None:
            end = min(end, (self.done // every + 1) * every)
        with contextlib.closing(self._updates(end)) as updated:
            for event in updated:
                if event is None or isinstance(event, RunRecord):
                    yield from self._updated(event, ends_epoch=every is not None and self.done % every == 0)
                    if self.is_over:
                        return
                else:
                    yield event

    def _updated(self, record: RunRecord | None, ends_epoch: bool) -> Iterator[Event]:
        """Validate, save and report after an update."""
        if record is not None and self.objective.per_epoch is not None:
            self.rows.append({"loss": record.loss, "grad_norm": record.grad_norm, **record.train})
        if ends_epoch:
            yield from self._ended()
        if record is not None:
            if self._validates(self.done):
                measured = self.objective.measure(result(self.state), self.objective.first, self.watch)
                record = record._replace(validation=measured)
            yield self._recorded(record)
        at_end = self.done == self.settings.steps or ends_epoch
        if self.done % self.settings.save_every == 0 or at_end or self.is_over:
            yield Saved(self._save_state())
        if self.is_over and self.done < self.settings.steps:
            yield Stopped(self.done, self.best.step, self.best.score)

    def _ended(self) -> Iterator[Event]:
        """An epoch: arrays that were too narrow in it become wider."""
        wider = self.objective.widen(self.rows) if self.objective.widen else None
        yield Epoch(self.done // self.objective.per_epoch, self.done, self.rows)
        self.rows = []
        if wider is not None:
            objective, shapes = wider
            self.objective = objective._replace(first=self.objective.first)
            yield Widened(self.done, shapes)

    def _recorded(self, record: RunRecord) -> RunRecord:
        """The record, written, and the model if it is the best one."""
        before, self.best = self.best, _better(self.objective, self.best, record.step, record.validation)
        record = record._replace(best=self.best.score < before.score)
        self.write(record)
        if record.best and sharding.is_first():
            if self.run.outputs.save is not None:
                self.run.outputs.save(self.folder / BEST, result(self.state), self.done, self.best.score)
            if self.run.outputs.keep is not None:
                self.run.outputs.keep(self.objective.first, record.validation)
        return record

    def _save_state(self) -> Path:
        return save_state(self.folder / STATES, self.state, self.settings.keep)

    def _validates(self, done: int) -> bool:
        return done % self.settings.validate_every == 0 or done == self.settings.steps

    def _updates(self, end: int) -> Iterator[Compiled | RunRecord | None]:
        """Compiled for every new program, RunRecord or None after every update up to the `end`."""
        pending: list[tuple[Drawn, dict]] = []
        for drawn, metrics, wait in self._steps(end):
            pending.append((drawn, metrics))
            self.clock.count(drawn.structures, drawn.atoms)
            if drawn.program not in self.programs:
                self.programs.add(drawn.program)
                jax.block_until_ready(metrics["loss"])
                yield Compiled(len(self.programs), drawn.shape, self.clock.lap(), drawn.group)
                self.clock.restart()  # compilation says nothing about the speed
            self.clock.mark()
            if len(pending) % self.settings.accumulate:
                continue
            done = self.done + 1
            if done % self.settings.print_every and not self._validates(done):
                self.done = done
                yield None
                continue
            numbers = jax.device_get([metrics for _, metrics in pending])  # waits for the device
            if not all(np.all(one["finite"]) for one in numbers):
                continue  # the next turn raises, with the names
            self.done = done
            yield self._record([(one, m) for (one, _), m in zip(pending, numbers, strict=True)], wait)
            pending = []
            self.clock.restart()

    def _steps(self, end: int) -> Iterator[tuple[Drawn, dict[str, Any], float]]:
        """(what was drawn, metrics, share of the time waited for batches) of every batch up to the `end`."""
        run, start = self.run, int(self.state.step)
        left = end * self.settings.accumulate - start
        layout, facts = run.layout, []

        def on_devices(item: tuple[Drawn, Any]) -> Any:
            return item[0], jax.device_put(item[1]) if layout is None else sharding.put(item[1], layout)

        def batches(feed: Any) -> Iterator[Any]:
            for drawn, batch in feed:
                facts.append(drawn)
                yield batch

        first = self.state if layout is None else sharding.put_state(self.state, layout)
        with prefetch(itertools.islice(self.objective.batches(start), left), put=on_devices) as feed:
            for state, metrics in updates(run.step, first, batches(feed), self.objective.names):
                self.state = state
                yield facts.pop(0), metrics, feed.wait_fraction

    def _record(self, pending: list[tuple[Drawn, dict]], wait: float) -> RunRecord:
        structures, atoms, speed = self.clock.speeds()
        left = (self.settings.steps - self.done) * self.settings.accumulate
        others = [(one, {k: x for k, x in m.items() if k not in ("loss", "grad_norm", "finite")}) for one, m in pending]
        return RunRecord(
            step=self.done,
            learning_rate=float(self.rate(self.done - 1)),
            loss=float(np.mean([m["loss"] for _, m in pending])),
            grad_norm=float(np.mean([m["grad_norm"] for _, m in pending])),
            train=self.objective.summarise(others, self.state.params),
            seconds=time.monotonic() - self.clock.begin,
            remaining=left / speed if speed else np.nan,
            structures=structures,
            atoms=atoms,
            wait=wait,
        )


def _best_so_far(run: Run) -> Best:
    """The best of the validations in the tables, up to the step at which the run continues."""
    best = Best(0, np.inf, 0)
    for step, errors in run.outputs.tables.validations(run.done):
        best = _better(run.objective, best, step, errors)
    return best


def _better(objective: Objective, best: Best, step: int, errors: Measured) -> Best:
    score = objective.score(errors) if errors else None
    if score is None:
        return best
    return Best(step, score, 0, score) if score < best.score else best._replace(since=best.since + 1, last=score)
