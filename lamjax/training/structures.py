"""A whole run of fine-tuning on where structures relax to, as a stream of events."""

import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints, losses
from lamjax.data import Pair
from lamjax.losses import Learned
from lamjax.reports import plots
from lamjax.training.checkpoints import save_state
from lamjax.training.fit import NonFiniteError, fit
from lamjax.training.run import Saved, Stopped
from lamjax.training.setup import BEST, MODEL, STATES, write_settings
from lamjax.training.state import TrainState, result
from lamjax.training.structures_config import StructureTuneConfig as StructureTuneConfig
from lamjax.training.structures_config import read_config as read_config
from lamjax.training.structures_data import fingerprint, name, replay_batches
from lamjax.training.structures_judge import Judgement, read_structures
from lamjax.training.structures_log import COUNTS as COUNTS
from lamjax.training.structures_log import Epoch, Judged, Log, Watch, save_model
from lamjax.training.structures_log import validations as validations
from lamjax.training.structures_setup import MINIMISER, PLOT, STRUCTURES, TuneRun, times_widened
from lamjax.training.structures_setup import prepare as prepare


class Stepped(NamedTuple):
    """One update is done."""

    step: int
    row: dict[str, float]  # of history.csv


class Widened(NamedTuple):
    """Neighbours were missing in an epoch, and the arrays now have more slots."""

    n_overflow: int  # structures
    capacities: tuple[tuple[int, ...], ...]


Event = Stepped | Epoch | Judged | Widened | Saved | Stopped


def events(run: TuneRun, watch: Watch | None = None) -> Iterator[Event]:
    """Train to the end of the run.

    Held-out structures are relaxed before the first step, after every `validate_every` epochs and at the end.
    best.lamjax is the model with the least median structure error among these, the untrained one included;
    model.lamjax is the last one. A state is saved at intervals, at the end of an epoch, and before NonFiniteError (the
    last good one) is raised. `watch` is handed relaxations and may show their progress.
    """
    output, log = Path(run.config.output), Log(run)
    write_settings(output, run.config, fingerprint(run.sets))
    log.open()
    if run.done == 0:
        yield log.judged(run.state, 0, watch)
    state = run.state if log.is_over else (yield from _train(run, log, watch))
    yield from _finish(run, log, state)


def _train(run: TuneRun, log: Log, watch: Watch | None) -> Generator[Event, None, TrainState]:
    """All that is left, told as it happens; the state at the end."""
    config, states, state = run.config, Path(run.config.output) / STATES, run.state
    try:
        for state, step, metrics in steps(run):
            if not metrics:
                continue  # the next turn raises, with the names
            yield Stepped(step, log.stepped(state, step, metrics))
            ended = step % run.packing.per_epoch == 0
            if ended:
                yield from _end_of_epoch(run, log, state, step, watch)
            if ended or step % config.save_every == 0:
                yield Saved(save_state(states, state, config.keep))
            if ended and log.is_over and step < run.total:
                yield Stopped(step, log.best, log.scores[log.best])
                break
    except NonFiniteError:
        save_state(states, state, config.keep)
        raise
    return state


def _end_of_epoch(run: TuneRun, log: Log, state: TrainState, step: int, watch: Watch | None) -> Iterator[Event]:
    per_epoch = run.packing.per_epoch
    epoch, grown = step // per_epoch, times_widened(log.rows[:-per_epoch], per_epoch)
    found = log.epoch(epoch, step)
    yield found
    if times_widened(log.rows, per_epoch) > grown:
        yield Widened(found.counts["n_overflow"], run.packing.widen())
    if epoch % run.config.validate_every == 0 or step == run.total:
        yield log.judged(state, step, watch)


def steps(run: TuneRun) -> Iterator[tuple[TrainState, int, dict[str, float]]]:
    """(state, steps done, metrics) of every batch that is left; after one without metrics NonFiniteError is raised."""
    config, step = run.config, run.done

    def host():
        replayed = replay_batches(config, run.replay, run.done)
        for batch, labelled in zip(run.packing.stream(run.done, run.total), replayed, strict=False):
            yield {"structures": batch, **({} if labelled is None else {"replay": labelled})}

    def sources(batch: dict) -> list[str]:
        found = [run.packing.names[k - 1] for k in np.ravel(batch["structures"].number) if k > 0]
        frames = np.ravel(batch["replay"].frame) if "replay" in batch else []
        return found + [run.replay.sources[k] for k in frames if k >= 0]

    stepping = fit(
        run.loss,
        run.state,
        run.optimizer,
        host(),
        sources=sources,
        lr_ratio=lambda update: run.learning_rate(update) / config.schedule.start_lr,
        freeze=run.freeze,
        rates=config.rates,
        ema_decay=config.ema_decay,
        matmul_precision=config.matmul_precision,
    )
    for state, metrics in stepping:
        found = jax.device_get(metrics)
        step += bool(found["finite"])
        yield state, step, _readable(found) if found["finite"] else {}


def _readable(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of one step under short names; sums over labels become errors."""
    found = {key.removeprefix("structures/"): float(x) for key, x in metrics.items() if not key.startswith("replay/")}
    del found["finite"]
    sums = {key.removeprefix("replay/"): x for key, x in metrics.items() if key.startswith("replay/")}
    errors = losses.errors(sums) if sums else {}
    return found | {f"replay_{key}": x for key, x in errors.items() if key.startswith("rmse")}


def _finish(run: TuneRun, log: Log, state: TrainState) -> Iterator[Saved]:
    """The last model, the numbers that its minimiser learned, and the plot of the best one."""
    save_model(run, state, log.output / MODEL, int(state.step), log.scores[max(log.scores)])
    yield Saved(log.output / BEST)
    yield Saved(log.output / MODEL)
    if isinstance(state.params, Learned):
        path = log.output / MINIMISER
        numbers = jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), result(state).minimiser)
        checkpoints.write_atomically(path, json.dumps(numbers, indent=1).encode())
        yield Saved(path)
    after = read_structures(log.output / STRUCTURES, "after")
    _plot(log.output / PLOT, run.sets.validation, log.before, after, log.best)
    yield Saved(log.output / PLOT)


def _plot(path: Path, pairs: Sequence[Pair], before: Judgement, after: Judgement, step: int) -> None:
    shown = np.isfinite(before.dq) & np.isfinite(after.dq)
    if shown.any():
        names = [name(pair) for pair, show in zip(pairs, shown, strict=True) if show]
        plots.distribution(
            path,
            names,
            before.dq[shown],
            after.dq[shown],
            "structure error Dq (amu$^{1/2}$ Å)",
            f"{len(names)} held-out structures relaxed to convergence; after: best model, step {step}",
        )
