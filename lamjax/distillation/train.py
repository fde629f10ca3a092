"""Students: the members of a committee, made and trained together in one program."""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from lamjax import checkpoints, edit, pytree
from lamjax.committee import stack_members
from lamjax.data import Frame, Packed, batches, digests, set_bias, set_statistics
from lamjax.distillation.config import StudentConfig
from lamjax.distillation.files import LEARNING, STATES, read_facts, remove, write_facts
from lamjax.distillation.probes import with_probes
from lamjax.distillation.shapes import LastingShapes
from lamjax.evaluation.errors import FORCES, error_table, predictions
from lamjax.losses import DistillationLossConfig, committee_loss, distillation_loss
from lamjax.potential import Params, Potential, build
from lamjax.training import engine, objective, optimizer, per_member, saved_steps, schedule
from lamjax.training.config import to_json
from lamjax.training.loggers import LoggerName
from lamjax.training.step import is_frozen

SHOW, SAVE = 100, 1000  # steps


class Errors(NamedTuple):
    """RMSE against labels."""

    energy: float  # eV/atom
    force: float  # eV/Å, of a component


class Trainer:
    """Trains all members at once. Shapes and programs are kept for all rounds."""

    def __init__(
        self, config: StudentConfig, potential: Potential, seed: int, logger: tuple[LoggerName, ...] = ()
    ) -> None:
        self.config, self.seed = config, seed
        self.shapes = LastingShapes(potential.shells, config.max_programs, config.batch_size, config.precision)
        self.loss = committee_loss(
            distillation_loss(potential, DistillationLossConfig(config.loss, config.hessian, config.hessian))
        )
        self.settings = engine.shared_settings(
            config, output="", validate_every=config.steps, print_every=SHOW, save_every=SAVE, keep=1, logger=logger
        )
        self.update = per_member(optimizer(config.optimizer, schedule(config.schedule, config.steps)))
        self.step = engine.make(self.loss, self.settings, self.update)

    def train(self, stacked: Params, frames: Sequence[Frame], folder: Path) -> Generator[engine.Event, None, Params]:
        """The members after `steps` more steps; states are saved in the folder, and the last one is resumed."""
        packed = self.shapes.pack(frames)
        self._begin(frames, folder)

        def batches_from(start: int) -> Iterator[Any]:
            drawn = batches(packed, self.config.batch_size, seed=self.seed, start=start)
            return (with_probes(batch, frames) for batch in drawn) if self.config.hessian else drawn

        goal = objective(self.loss, batches_from, sources=packed.sources)
        settings = replace(self.settings, output=str(folder))
        resumed = bool(saved_steps(folder / STATES))
        run = engine.restored(settings, goal, stacked, self.update, self.step, resumed)
        return (yield from engine.events(run))

    def _begin(self, frames: Sequence[Frame], folder: Path) -> None:
        """Write data and settings of a training; states of one with other data or settings are removed.

        Raises ValueError if the frames are others than those that the states began with.
        """
        course = json.loads(to_json(self.config)) | {"seed": self.seed}
        new = {"frames": digests(frames), "course": course}
        old = read_facts(folder / LEARNING) if saved_steps(folder / STATES) else {}
        if old and old["frames"] != new["frames"]:
            other = ", ".join(part for part, name in new["frames"].items() if old["frames"].get(part) != name)
            raise ValueError(
                f"{folder}: the training that was interrupted here began with other frames ({other} differ). Put the "
                f"labelled files of the rounds, and `initial`, back as they were, or remove {folder / STATES} so that "
                "this round is trained anew."
            )
        if old and old["course"] != course:
            remove(folder / STATES)
        write_facts(folder / LEARNING, new)


def open_student(config: StudentConfig) -> Potential:
    """The potential of the students, with one head; ValueError for one that cannot learn."""
    described: Any = config.model
    head = config.head
    if config.base is not None:
        stored = checkpoints.read(config.base, config.head)
        checkpoints.check_config(stored.config, config.base, "student.base")
        described, head = stored.config, config.head or stored.default_head
    chosen = build(described, head)
    if chosen.head is None:
        raise ValueError(f"student.head: choose one of {', '.join(described.head_names)}.")
    if described.descriptor.table is not None:
        raise ValueError("student: a tabulated model cannot learn. Take it without the table; one is made at the end.")
    head = dict(described.heads)[chosen.head]
    return build(replace(described, heads=((chosen.head, head),)))


def first_members(config: StudentConfig, potential: Potential, n: int, frames: Sequence[Frame], seed: int) -> Params:
    """Members that differ in what is drawn: all of a fresh model, the head of a stored one."""
    dtype, keys = np.dtype(config.precision), jax.random.split(jax.random.key(seed), n)
    if config.base is None:
        members = [potential.init(key, dtype) for key in keys]
        first = set_statistics(potential, members[0], frames)
    else:
        whole = checkpoints.load(config.base, potential.head, dtype)
        base = edit.select_heads(*whole, potential.head)
        members = [_with_fresh_head(*base, key) for key in keys]
        first = set_bias(potential, members[0], frames)
    return stack_members([_with_statistics(member, first) for member in members])


def measured(
    potential: Potential, members: Sequence[Params], frames: Sequence[Frame], packed: Packed, size: Any
) -> list[Errors]:
    """RMSE of every member on labelled frames."""
    errors = []
    for params in members:
        rows = error_table(potential, frames, predictions(potential, params, packed, size))
        rmse = {row.quantity: row.rmse / 1000 for row in rows}
        errors.append(Errors(rmse["energy"], rmse[FORCES]))
    return errors


def n_members(stacked: Params) -> int:
    """The number of members."""
    return len(jax.tree.leaves(stacked)[0])


def unstack(stacked: Params) -> list[Params]:
    """The members one by one."""
    return [pytree.take(stacked, k) for k in range(n_members(stacked))]


def _with_fresh_head(potential: Potential, params: Params, key: Array) -> Params:
    """The model with the layers of its only head drawn at random."""
    fresh = edit.add_head(potential, params, "fresh", None, key)[1].heads["fresh"]
    return Params(params.descriptor, {potential.head: fresh})


def _with_statistics(member: Params, first: Params) -> Params:
    """The member with statistics, biases and all other constants of the first member."""
    return jax.tree_util.tree_map_with_path(lambda path, own, data: data if is_frozen(path) else own, member, first)
