"""A whole run of training on labels as a stream of events; whoever reads it prints, plots or ignores them."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints
from lamjax.data import batches, prefetch
from lamjax.losses import Slots, errors
from lamjax.training import curve, sharding
from lamjax.training.checkpoints import save_state
from lamjax.training.curve import Record as Record
from lamjax.training.fit import NonFiniteError, add, evaluate, fit
from lamjax.training.outcome import write_plots
from lamjax.training.setup import BEST, CURVE, MODEL, STATES, Run, write_facts
from lamjax.training.setup import prepare as prepare
from lamjax.training.slots import Drawn, sources, stream
from lamjax.training.state import TrainState, result
from lamjax.training.tasks import Task


class Compiled(NamedTuple):
    """A shape was seen for the first time."""

    n: int
    n_rows: int  # of all slots
    n_atoms: int  # of a row
    capacities: tuple[int, ...]
    seconds: float  # compilation and the first step
    group: str = ""  # the tasks that it is for, where not all share programs


class Saved(NamedTuple):
    """A state, a model or a plot was written."""

    path: Path


class Stopped(NamedTuple):
    """The run ended early: the validation error did not improve any more."""

    step: int
    best_step: int
    best: float  # the monitored error


class Best(NamedTuple):
    """The least monitored validation error so far, and how many validations there were since."""

    step: int
    score: float
    since: int


def events(run: Run) -> Iterator[Compiled | Record | Saved | Stopped]:
    """Train to the end of the run; the model bundle is written last.

    A state is saved at intervals, at the end, and before NonFiniteError (the last good one) is raised; the model with
    the least validation error is best.lamjax. Of several processes the first one writes.
    """
    if sharding.is_first():
        write_facts(run)
        names = [task.name for task in run.tasks]
        path = Path(run.config.output) / CURVE
        with curve.writing(path, names, run.done, run.config.tensorboard) as write:
            yield from _train(run, write)
    else:
        yield from _train(run, lambda record: None)


def _train(run: Run, write: Callable[[Record], None]) -> Iterator[Compiled | Record | Saved | Stopped]:
    """All that happens, told to `write` and to whoever listens."""
    config, output, first = run.config, Path(run.config.output), sharding.is_first()
    best = _best_so_far(run)
    state, done = run.state, run.done
    try:
        for state, done, found in _updates(run, best):
            if found is not None:
                yield found
            if isinstance(found, Compiled):
                continue
            if isinstance(found, Record):
                write(found)
                before, best = best, _improved(run, best, found)
                if best.step == done != before.step and first:
                    _save_model(run, state, output / BEST, done)
            over = _is_over(run, best)
            if done % config.save_every == 0 or done == config.steps or over:
                yield Saved(save_state(output / STATES, state, config.keep))
            if over:
                yield Stopped(done, best.step, best.score)
                break
    except NonFiniteError:
        save_state(output / STATES, state, config.keep)
        raise
    if first:
        _save_model(run, state, output / MODEL, done)
        yield Saved(output / MODEL)
        for path in write_plots(run, result(state), output) if config.plots else ():
            yield Saved(path)


def _updates(run: Run, best: Best) -> Iterator[tuple[TrainState, int, Compiled | Record | None]]:
    """(state, updates done, Compiled) for every new program, (..., Record or None) after every update that is left."""
    config, done = run.config, run.done
    if done >= config.steps or _is_over(run, best):
        return
    clock, seen, pending = _Clock(), set(), []
    for state, metrics, drawn, wait in _steps(run):
        pending.append((drawn, metrics))
        clock.count(drawn)
        if drawn.program not in seen:
            seen.add(drawn.program)
            jax.block_until_ready(metrics["loss"])
            group = drawn.group if len(run.groups) > 1 else ""
            shape = (drawn.n_rows, drawn.shape.n_atoms, drawn.capacities)
            yield state, done, Compiled(len(seen), *shape, clock.lap(), group)
            clock.restart()  # compilation says nothing about the speed
        clock.mark()
        if len(pending) % config.accumulate:
            continue
        done += 1
        measured = done % config.validate_every == 0 or done == config.steps
        if not measured and done % config.print_every:
            yield state, done, None
            continue
        yield state, done, _record(run, state, done, pending, clock, wait, measured)
        pending = []
        clock.restart()


def _steps(run: Run) -> Iterator[tuple[TrainState, dict[str, Any], Drawn, float]]:
    """(state, metrics, what was drawn, share of the time waited for batches) of every batch that is left."""
    config, layout = run.config, run.layout
    drawn: deque[Drawn] = deque()
    share = {"multiple": layout.multiple, "part": layout.share}
    left = (config.steps - run.done) * config.accumulate
    host = stream(run.tasks, run.groups, config.seed, slots=config.tasks_per_step, start=int(run.state.step), **share)

    def on_devices(item: tuple[Drawn, dict[str, Slots]]):
        return item[0], {group: sharding.put_batch(slots, layout) for group, slots in item[1].items()}

    with prefetch(itertools.islice(host, left), put=on_devices) as feed:

        def batches_alone():
            for facts, batch in feed:
                drawn.append(facts)
                yield batch

        start = config.schedule.start_lr
        stepping = fit(
            run.loss,
            sharding.put_state(run.state, layout),
            run.optimizer,
            batches_alone(),
            sources=sources(run.tasks, run.groups),
            lr_ratio=lambda update: run.learning_rate(update) / start,
            freeze=config.freeze,
            rates=config.rates,
            ema_decay=config.ema_decay,
            accumulate=config.accumulate,
            share_layers=run.n_shared,
            matmul_precision=config.matmul_precision,
            sharding=layout.state,
        )
        for state, metrics in stepping:
            yield state, metrics, drawn.popleft(), feed.wait_fraction


class _Clock:
    """How fast a run goes between two moments at which the device has nothing left to do."""

    def __init__(self):
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

    def count(self, drawn: Drawn) -> None:
        """One more batch."""
        n = jax.process_count()
        self.structures, self.atoms = self.structures + n * drawn.structures, self.atoms + n * drawn.atoms
        self.batches += 1

    def speeds(self) -> tuple[float, float, float]:
        """Structures, atoms and batches per second since the last restart; the last ones known if there was no step."""
        if self.batches:
            seconds = max(time.monotonic() - self.since, 1e-9)
            self.last = (self.structures / seconds, self.atoms / seconds, self.batches / seconds)
        return self.last


def _record(run: Run, state, done: int, pending: list, clock: _Clock, wait: float, measured: bool) -> Record:
    sums = jax.device_get([metrics for _, metrics in pending])  # from here on the device is done with the steps
    structures, atoms, speed = clock.speeds()
    left = (run.config.steps - done) * run.config.accumulate
    by_task: dict[int, list[dict]] = {}
    for (drawn, _), metrics in zip(pending, sums, strict=True):
        for slot, task in enumerate(drawn.tasks):
            by_task.setdefault(task, []).append({k: v[slot] for k, v in metrics.items() if np.ndim(v) == 1})
    train = {run.tasks[k].name: errors(add(found)) for k, found in sorted(by_task.items())}
    validation = {task.name: _validate(run, task, state) for task in run.tasks if task.validation} if measured else {}
    return Record(
        step=done,
        learning_rate=float(run.learning_rate(done - 1)),
        loss=float(np.mean([s["loss"] for s in sums])),
        grad_norm=float(np.mean([s["grad_norm"] for s in sums])),
        train=_named(train),
        validation=_named(validation),
        seconds=time.monotonic() - clock.begin,
        remaining=left / speed if speed else np.nan,
        structures=structures,
        atoms=atoms,
        wait=wait,
    )


def _validate(run: Run, task: Task, state: TrainState) -> dict[str, float]:
    """The errors of the held-out frames, in the programs of the training loss."""
    number = run.tasks.index(task)
    group = next(group for group in run.groups if number in group.tasks)
    layout = sharding.one_slot(run.layout)
    share = {"multiple": layout.multiple, "part": layout.share}
    held_out = batches(task.validation, task.batch_size, seed=None, epochs=1, **share)
    own = np.array([group.tasks.index(number)], np.int32)
    slots = (Slots(own, jax.tree.map(lambda x: x[None], batch)) for batch in held_out)
    return evaluate(run.loss, result(state), ({group.name: sharding.put_batch(one, layout)} for one in slots))


def _named(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The errors of all tasks as one dict: "rmse_e:task", or "rmse_e" for the only one."""
    return {f"{key}:{task}" if task else key: x for task, values in found.items() for key, x in values.items()}


def _save_model(run: Run, state: TrainState, path: Path, step: int) -> None:
    config = run.config
    files = {name: list(task.train) for name, task in config.tasks.items()} or list(config.train)
    card = {"trained_on": files, "steps": step, "seed": config.seed, "precision": config.precision}
    checkpoints.save(path, run.potential, result(state), card)


def _best_so_far(run: Run) -> Best:
    """What the curve says of the validations up to the step from which the run goes on."""
    best = Best(0, np.inf, 0)
    if run.done:
        path = Path(run.config.output) / CURVE
        for step, found in curve.validations(path, [task.name for task in run.tasks]):
            if step <= run.done:
                best = _better(run, best, step, found)
    return best


def _improved(run: Run, best: Best, record: Record) -> Best:
    return _better(run, best, record.step, record.validation) if record.validation else best


def _better(run: Run, best: Best, step: int, validation: dict[str, float]) -> Best:
    probabilities = {task.name: task.probability for task in run.tasks}
    score = curve.score(run.config.monitor, validation, probabilities)
    if score is None:
        return best
    return Best(step, score, 0) if score < best.score else best._replace(since=best.since + 1)


def _is_over(run: Run, best: Best) -> bool:
    return run.config.patience is not None and best.since >= run.config.patience
