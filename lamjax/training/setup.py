"""Everything a run needs before its first step: data, model, statistics, or the last state of an interrupted run."""

import json
import platform
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lamjax import checkpoints, edit, pytree
from lamjax.data import Plan, digests, facts, files_of, row_shape
from lamjax.losses import Loss
from lamjax.potential import Potential, build
from lamjax.reports import outputs
from lamjax.training import sharding
from lamjax.training.checkpoints import restore_state, saved_steps
from lamjax.training.config import TrainConfig, differences, to_json, validate
from lamjax.training.schedules import Schedule, ScheduleConfig, schedule
from lamjax.training.sharding import Layout
from lamjax.training.state import TrainState, init, optimizer
from lamjax.training.step import shared, unknown_names
from lamjax.training.tasks import Group, Task, groups, read_tasks, run_loss, with_statistics

STATES, MODEL, BEST, CURVE = "states", "model.lamjax", "best.lamjax", "lcurve.csv"
CONFIG, FACTS = "config.json", "facts.json"
WRITTEN = (CONFIG, FACTS, CURVE, BEST, MODEL, f"{STATES}/*", "tensorboard/*", "parity*.png", "curve*.png")


class Run(NamedTuple):
    """A run that is ready to begin, or to go on."""

    config: TrainConfig
    potential: Potential  # with the head that is trained, where it is only one
    state: TrainState
    loss: Loss  # of a batch {group: Slots}
    optimizer: optax.GradientTransformation
    learning_rate: Schedule  # of the number of updates
    tasks: tuple[Task, ...]  # one of name "" unless the config has `tasks`
    groups: tuple[Group, ...]  # tasks that share programs
    layout: Layout
    data: dict[str, dict[str, Any]]  # what `check_data` compares
    planned: int  # steps for which shapes were planned: those of the run's beginning, whatever it was extended to

    @property
    def plan(self) -> Plan:
        """The shapes that all tasks share."""
        return self.tasks[0].train.plan

    @property
    def n_programs(self) -> int:
        """Compilations of the training step: one for every shape, for all tasks of a group."""
        return sum(len(_shapes(self, group, lambda task: task.train)) for group in self.groups)

    @property
    def n_measured(self) -> int:
        """Compilations of the validation."""
        alone = self._replace(config=replace(self.config, tasks_per_step=1))
        return sum(len(_shapes(alone, group, lambda task: task.validation)) for group in self.groups)

    @property
    def done(self) -> int:
        """Updates done before the first step."""
        return int(self.state.step) // self.config.accumulate

    @property
    def n_shared(self) -> int:
        """First layers that all heads have in common."""
        return shared_layers(self.config, self.potential)


def prepare(config: TrainConfig, resume: bool = False) -> Run:
    """Read the data, plan the shapes, make the model and its statistics, or take up the last state of the output.

    Raises ValueError for an output folder that holds states already, unless `resume`, and for a state that was made
    with another config or other data.
    """
    outputs.claim_folder(config.output, WRITTEN, files_of(config.files))
    output, saved = Path(config.output), begun(config, resume, config.accumulate)
    potential, params = _model(config)
    check_names(config, params)
    planned = planned_steps(output, config) if saved else config.steps
    tasks = read_tasks(replace(config, steps=planned), potential)
    data = _fingerprint(tasks)
    if saved:
        check_data(output, data)
    else:
        params = shared(with_statistics(config, potential, params, tasks), shared_layers(config, potential))
    learning_rate = schedule(config.schedule, config.steps)
    updates = optimizer(config.optimizer, learning_rate, by_head=bool(config.tasks), accumulate=config.accumulate)
    state = init(params, updates, ema=config.ema_decay is not None)
    if saved:
        state = restore_state(output / STATES, state)
    found = groups(tasks)
    where = sharding.layout(config.tasks_per_step)
    loss = run_loss(tasks, found)
    return Run(config, potential, state, loss, updates, learning_rate, tasks, found, where, data, planned)


def check_sources(config, written: Sequence[str], sources: Iterable[str | Path], resume: bool) -> None:
    """ValueError if the run of a config would write over one of these files, of which it was made.

    A run that goes on may be started with the config.json that it has written itself.
    """
    own = (CONFIG,) if resume else ()
    outputs.claim_folder(config.output, [name for name in written if name not in own], sources)


def begun(config, resume: bool, accumulate: int = 1) -> list[int]:
    """The steps of the states in the output folder of a config; ValueError unless the run may begin or go on there."""
    output = Path(config.output)
    if output.is_file():
        raise ValueError(f"output: {output} is a file. Name a folder: states, tables and models are written into it.")
    saved = saved_steps(output / STATES)
    if saved and not resume:
        raise ValueError(
            f"{output} holds the states of a run (up to step {saved[-1] // accumulate}). Add --resume to go on, "
            "or choose another output folder."
        )
    if saved:
        check_config(output, config, saved[-1] // accumulate)
    return saved


def _shapes(run: Run, group: Group, packed_of) -> set[tuple]:
    """(bucket, shape of a row) of the batches of a group; with several slots all its tasks have rows of one shape."""
    found = set()
    for task in (run.tasks[k] for k in group.tasks):
        packed = packed_of(task)
        for bucket in packed.numbers if packed else ():
            one_size = run.config.tasks_per_step > 1
            found.add((bucket, None if one_size else row_shape(run.plan.buckets[bucket], task.batch_size)))
    return found


def write_facts(run: Run) -> None:
    """The resolved config, and versions, devices and data, beside the states."""
    write_settings(Path(run.config.output), run.config, run.data, planned_steps=run.planned)


def write_settings(output: Path, config: Any, data: dict[str, dict[str, Any]], **more: Any) -> None:
    """config.json and facts.json, with `more` facts; `data` is what `check_data` will compare."""
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.write_atomically(output / CONFIG, to_json(config).encode())
    packages = ("lamjax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "flax", "ase")
    facts = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "devices": sorted(f"{d.platform} {d.device_kind}" for d in jax.devices()),
        "data": data,
        **more,
    }
    checkpoints.write_atomically(output / FACTS, json.dumps(facts, indent=1, ensure_ascii=False).encode())


def shared_layers(config: TrainConfig, potential: Potential) -> int:
    """How many first layers all heads share; ValueError where heads differ or have fewer."""
    heads = [head for _, head in potential.config.heads]
    least = min(len(head.neuron) + 1 for head in heads)
    n = least if config.share_layers == "all" else config.share_layers
    if n and any(head != heads[0] for head in heads):
        raise ValueError("share_layers: heads that share layers must have equal settings in `model.heads`.")
    if n > least:
        raise ValueError(f"share_layers is {n}, the heads have {least} layers (the last one included).")
    return n


def _model(config: TrainConfig):
    """The potential and its first parameters. The head is chosen here unless tasks choose theirs."""
    dtype = np.dtype(config.precision)
    if config.base is not None:
        potential, params = checkpoints.load(config.base, None if config.add_heads else config.head, dtype)
        for number, (name, source) in enumerate(config.add_heads.items()):
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            potential, params = edit.add_head(potential, params, name, _source(potential, source), key)
        if config.add_heads and config.head:
            potential = build(potential.config, config.head)
    else:
        potential = build(config.model, config.head)
        params = potential.init(jax.random.key(config.seed), dtype)
    if potential.head is None and not config.tasks:
        raise ValueError(
            f"{config.base or 'The model'} has several heads; set `head` to one of "
            f"{', '.join(potential.config.head_names)}, or give `tasks` to train several."
        )
    return potential, params


def _source(potential: Potential, source: str):
    """What `edit.add_head` makes a head of."""
    names = potential.config.head_names
    if source not in (*names, "random", "mean"):
        raise ValueError(f"add_heads: {source!r} is no head of the base. Take random, mean, or {', '.join(names)}.")
    return {"random": None, "mean": names}.get(source, source) if source not in names else source


def check_names(config: Any, params: Any) -> None:
    """ValueError for parts to freeze or to scale that the model does not have."""
    for key, names in (("freeze", config.freeze), ("rates", tuple(config.rates))):
        if unknown := unknown_names(params, names):
            raise ValueError(f"{key}: no parameter is called {', '.join(unknown)}. Known: {', '.join(_parts(params))}.")


def _parts(params) -> list[str]:
    """The first names in the paths of the parameters."""
    names = [pytree.path_name(path).split("/") for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return sorted({"/".join(name[:2]) for name in names})


def check_config(output: Path, config: Any, done: int) -> None:
    """ValueError naming what differs from the config that the run began with; of the length `check_length` judges."""
    old = begun_with(output, config)
    changed = [] if old is None else differences(old, config)
    length = "steps" if isinstance(config, TrainConfig) else "epochs"
    longer = [one for one in changed if one.startswith(f"{length}: ")]
    if changed != longer:
        raise ValueError(
            f"{output} was begun with another config: {'; '.join(changed)}. An exact continuation needs the same. "
            f"Change them back, or begin a new run in another output folder with `base: {output / MODEL}`."
        )
    if longer and length == "steps":
        check_length(output, config.schedule, longer[0], (old.steps, config.steps), done)


def check_length(output: Path, config: ScheduleConfig, changed: str, lengths: tuple[int, int], done: int) -> None:
    """ValueError if a run would have taken the steps that are done in another way, had it begun with its new length.

    That is if the learning rate was another one in any of them. `lengths` are the old and the new one in steps.
    """
    before, now = lengths
    if now < done:
        raise ValueError(f"{output} was begun with another config: {changed}, but {done} steps are done already.")
    steps = np.arange(done)
    was, would_be = (np.asarray(schedule(config, n)(steps)) for n in (before, now))
    if other := np.flatnonzero(was != would_be).tolist():
        k = other[0]
        raise ValueError(
            f"{output} was begun with another config: {changed}. It cannot go on to the new length, since the learning "
            f"rate falls towards the end of a run (schedule.type {config.type}): it would have been {would_be[k]:.3g} "
            f"in step {k + 1}, which was done with {was[k]:.3g}. Train on in another output folder, with `base: "
            f"{output / MODEL}`. Runs that can be lengthened are those whose rate does not depend on their end: "
            "schedule.type constant, exp with decay_rate, or wsd before its decay begins."
        )


def planned_steps(output: Path, config: TrainConfig) -> int:
    """The steps that a run was begun with: shapes, and with them batches, stay as they were when it is extended."""
    facts, old = output / FACTS, begun_with(output, config)
    first = old.steps if old is not None else config.steps
    return json.loads(facts.read_text()).get("planned_steps", first) if facts.is_file() else first


def begun_with(output: Path, config: Any) -> Any:
    """The config that the last part of the run had; None if it is not known."""
    file = output / CONFIG
    return validate(json.loads(file.read_text()), str(file), type(config)) if file.is_file() else None


def check_data(output: Path, new: dict[str, dict[str, Any]]) -> None:
    """ValueError naming what of the data is not as it was when the run began; a warning if little is known of that."""
    file = output / FACTS
    if not file.is_file():
        return
    old = json.loads(file.read_text())["data"]
    changed = [f"{name or 'the run'}: {what}" for name in new for what in _changes(old.get(name, {}), new[name])]
    if changed:
        raise ValueError(
            f"{output} was begun with other data ({'; '.join(changed)}). An exact continuation needs the same files, "
            "with their frames in the same order. Put them back, or begin a new run in another output folder with "
            f"`base: {output / MODEL}`."
        )
    if not all("digests" in one for one in old.values()):
        warnings.warn(
            f"{file} was written by an older lamjax, which kept numbers of frames and sums alone: whether labels, "
            "positions and order are those of the run's beginning is not known. From now on it will be.",
            stacklevel=3,
        )


def _changes(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """What differs, "train: 10 -> 12 frames" or "the forces of train"; what the old one does not know is left out."""
    found: list[str] = []
    for key, value in new.items():
        if isinstance(value, dict):
            found += _changes(old.get(key, {}), value, key)
        elif old and key in old and old[key] != value:
            found.append(f"other {key} ({above})" if isinstance(value, str) else f"{key} {old[key]} -> {value}")
    return found


def _fingerprint(tasks: tuple[Task, ...]) -> dict[str, dict[str, Any]]:
    """Numbers of frames, the sum of the energies (eV), and names of all structures and labels of every task."""
    return {
        task.name: {
            "train": len(task.frames),
            "validation": len(task.held_out),
            "energy_sum": float(np.sum(facts(task.frames).energy)),
            "digests": {"training": digests(task.frames), "held out": digests(task.held_out)},
        }
        for task in tasks
    }
