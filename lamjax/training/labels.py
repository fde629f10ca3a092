"""Runs on labels, of one data set or several: data, model and statistics, and the objective made of them."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import checkpoints, edit
from lamjax.data import Plan, batches, digests, facts, files_of, row_shape
from lamjax.losses import TaskBatches, errors
from lamjax.potential import Params, Potential, build
from lamjax.reports import outputs
from lamjax.training import curve, engine, folder, loggers, sharding
from lamjax.training.config import TrainConfig
from lamjax.training.curve import CURVE
from lamjax.training.engine import Outputs, Run, Sharing
from lamjax.training.loops import add, evaluate
from lamjax.training.objectives import Measured, Objective, Pending
from lamjax.training.outcome import write_plots
from lamjax.training.sharding import DeviceLayout
from lamjax.training.slots import sources, stream
from lamjax.training.step import shared
from lamjax.training.tasks import Group, Task, groups, read_tasks, run_loss, with_statistics

WRITTEN = (*folder.WRITTEN, CURVE, "parity*.png", "curve*.png")


class LabelSets(NamedTuple):
    """Tasks and groups of a run on labels."""

    tasks: tuple[Task, ...]  # one of name "" unless the config has `tasks`
    groups: tuple[Group, ...]  # tasks that share programs
    tasks_per_step: int
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
        alone = self._replace(tasks_per_step=1)
        return sum(len(_shapes(alone, group, lambda task: task.validation)) for group in self.groups)


def prepare(config: TrainConfig, resume: bool = False) -> Run:
    """Read the data, plan the shapes, make the model and its statistics, or take up the last state of the output.

    Raises ValueError for an output folder that holds states already, unless `resume`, and for a state that was made
    with another config or other data.
    """
    chosen = (*config.logger, *(["tensorboard"] if config.tensorboard else []))
    loggers.check(chosen)
    outputs.claim_folder(config.output, WRITTEN, files_of(config.files))
    output, saved = Path(config.output), folder.begun(config, resume, config.accumulate)
    potential, params = _model(config)
    folder.check_names(config, params)
    planned = planned_steps(output, config) if saved else config.steps
    tasks = read_tasks(replace(config, steps=planned), potential)
    sets, layout = (
        LabelSets(tasks, groups(tasks), config.tasks_per_step, planned),
        sharding.layout(config.tasks_per_step),
    )
    n_shared = shared_layers(config, potential)
    goal = label_objective(config, sets, layout)
    if not saved:
        params = shared(with_statistics(config, potential, params, tasks), n_shared)
    tables = curve.tables(output / CURVE, [task.name for task in tasks])
    written = Outputs(
        tables,
        functools.partial(_save_model, config, potential),
        finish=lambda params, best: write_plots(tasks, params, output) if config.plots else (),
        config=config,
        facts={"planned_steps": planned},
    )
    run = engine.ready(
        engine.shared_settings(config, logger=chosen),
        goal,
        params,
        written,
        bool(saved),
        Sharing(bool(config.tasks), n_shared, layout),
    )
    return run._replace(potential=potential, data=sets)


def label_objective(config: TrainConfig, sets: LabelSets, layout: DeviceLayout) -> Objective:
    """The mean label loss of the tasks that are drawn for a step; held-out frames are measured by the same program."""
    tasks, members = sets.tasks, sets.groups
    loss = run_loss(tasks, members)
    probabilities = {task.name: task.probability for task in tasks}

    def batches_from(start: int) -> Any:
        drawn = stream(tasks, members, config.seed, slots=config.tasks_per_step, start=start, share=layout.share)
        if len(members) > 1:
            return drawn
        return ((facts._replace(group=""), batch) for facts, batch in drawn)  # one group needs no name

    def summarise(pending: Pending, params: Any) -> dict[str, float]:
        by_task: dict[int, list[dict]] = {}
        for drawn, metrics in pending:
            for slot, task in enumerate(drawn.tasks):
                by_task.setdefault(task, []).append({k: v[slot] for k, v in metrics.items()})
        return _named({tasks[k].name: errors(add(metrics)) for k, metrics in sorted(by_task.items())})

    def measure(params: Any, first: Measured | None, watch: Callable) -> Measured:
        return _named(
            {task.name: _validate(loss, sets, k, params, layout) for k, task in enumerate(tasks) if task.validation}
        )

    return Objective(
        loss,
        batches_from,
        sources(tasks, members),
        summarise,
        measure,
        lambda measured: curve.score(config.monitor, measured, probabilities),
        fingerprint=_fingerprint(tasks),
    )


def _validate(loss: Any, sets: LabelSets, number: int, params: Any, layout: DeviceLayout) -> dict[str, float]:
    """The errors of the held-out frames of a task, in the programs of the training loss."""
    task = sets.tasks[number]
    group = next(group for group in sets.groups if number in group.tasks)
    layout = sharding.one_slot(layout)
    share = layout.share._asdict()
    held_out = batches(task.validation, task.batch_size, seed=None, epochs=1, **share)
    own = np.array([group.tasks.index(number)], np.int32)
    slots = (TaskBatches(own, jax.tree.map(lambda x: x[None], batch)) for batch in held_out)
    return evaluate(loss, params, (sharding.put({group.name: one}, layout) for one in slots))


def _named(by_task: dict[str, dict[str, float]]) -> dict[str, float]:
    """The errors of all tasks as one dict: "rmse_e:task", or "rmse_e" for the only one."""
    return {f"{key}:{task}" if task else key: x for task, values in by_task.items() for key, x in values.items()}


def _save_model(
    config: TrainConfig, potential: Potential, path: Path, params: Any, step: int, score: float | None
) -> None:
    files = {name: list(task.train) for name, task in config.tasks.items()} or list(config.train)
    card = {"trained_on": files, "steps": step, "seed": config.seed, "precision": config.precision}
    checkpoints.save(path, potential, params, card)


def _shapes(sets: LabelSets, group: Group, packed_of: Any) -> set[tuple]:
    """(bucket, shape of a row) of the batches of a group; with several slots all its tasks have rows of one shape."""
    shapes = set()
    for task in (sets.tasks[k] for k in group.tasks):
        packed = packed_of(task)
        for bucket in packed.numbers if packed else ():
            one_size = sets.tasks_per_step > 1
            shapes.add((bucket, None if one_size else row_shape(sets.plan.buckets[bucket], task.batch_size)))
    return shapes


def shared_layers(config: TrainConfig, potential: Potential) -> int:
    """The number of first layers that all heads share; ValueError where heads differ or have fewer."""
    if not config.share_layers:
        return 0
    checkpoints.check_config(potential.config, config.base or "The model", "share_layers")
    heads = [head for _, head in potential.config.heads]
    least = min(len(head.neuron) + 1 for head in heads)
    n = least if config.share_layers == "all" else config.share_layers
    if n and any(head != heads[0] for head in heads):
        raise ValueError("share_layers: heads that share layers must have equal settings in `model.heads`.")
    if n > least:
        raise ValueError(f"share_layers is {n}, the heads have {least} layers (the last one included).")
    return n


def _model(config: TrainConfig) -> tuple[Potential, Params]:
    """The potential and its first parameters. The head is chosen here unless tasks choose theirs."""
    dtype = np.dtype(config.precision)
    if config.base is not None:
        potential, params = checkpoints.load(config.base, None if config.add_heads else config.head, dtype)
        if config.add_heads:
            checkpoints.check_config(potential.config, config.base, "a new head (add_heads, --from)")
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


def _source(potential: Potential, source: str) -> str:
    """The source of a new head, as `edit.add_head` takes it."""
    names = potential.config.head_names
    if source not in (*names, "random", "mean"):
        raise ValueError(f"add_heads: {source!r} is no head of the base. Take random, mean, or {', '.join(names)}.")
    return {"random": None, "mean": names}.get(source, source) if source not in names else source


def planned_steps(output: Path, config: TrainConfig) -> int:
    """The steps that a run was begun with: shapes, and with them batches, stay as they were when it is extended."""
    facts, old = output / folder.FACTS, folder.begun_with(output, config)
    first = old.steps if old is not None else config.steps
    return json.loads(facts.read_text()).get("planned_steps", first) if facts.is_file() else first


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
