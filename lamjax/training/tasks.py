"""The tasks of a run: data sets with a head each, their statistics, and which of them share a program."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lamjax.audit import theory_levels as levels
from lamjax.data import (
    Frame,
    Packed,
    ReadOptions,
    Subset,
    facts,
    frames_per_batch,
    join,
    open_frames,
    pack,
    plan,
    sample,
    set_bias,
    set_environment,
    set_parameters,
    source,
)
from lamjax.data.statistics import MOST
from lamjax.evaluation.errors import predictions
from lamjax.losses import LabelLossConfig, Loss, heads_loss, multitask_loss, same_form
from lamjax.potential import Params, Potential, select
from lamjax.training.config import TaskConfig, TrainConfig, read_options

MOST_COMPARED = 100_000  # frames of the training whose places are compared with those of the validation


class Task(NamedTuple):
    """One data set, with the head and the loss that learn from it."""

    name: str  # "" for the only one of a run
    potential: Potential  # with the head of the task
    loss: LabelLossConfig
    probability: float  # of a step; they add up to 1
    batch_size: int | str
    frames: Sequence[Frame]
    held_out: Sequence[Frame]
    bias: str  # treatment of the energies per element of a stored model: change, set, keep
    train: Packed
    validation: Packed | None


class Group(NamedTuple):
    """Tasks whose heads and losses are of one form, so that one program serves them all."""

    name: str  # the names of its tasks
    tasks: tuple[int, ...]  # numbers in the run


def read_tasks(config: TrainConfig, potential: Potential) -> tuple[Task, ...]:
    """The tasks of a run with frames read, checked and packed into shapes that all of them share.

    Raises ValueError for a head that the model does not have, for a frame without any label, and for labels of several
    levels of theory under one head.
    """
    settings = config.tasks or {"": TaskConfig(config.train, config.validation, potential.head)}
    selected = {name: _select(potential, name, task) for name, task in settings.items()}
    frame_sets = {name: _frames(config, task, potential) for name, task in settings.items()}
    _check_levels(config, {name: selected[name].head for name in settings}, frame_sets)
    check_apart(frame_sets.values())
    everything = join(frames for sets in frame_sets.values() for frames in sets)
    looks = _structures(config, everything)
    shapes = plan(everything, potential.shells, config.max_programs, looks, config.batch_size)
    weights = {name: task.probability or len(frame_sets[name][0]) for name, task in settings.items()}
    return tuple(
        Task(
            name,
            selected[name],
            task.loss or config.loss,
            weights[name] / sum(weights.values()),
            config.batch_size if task.batch_size is None else task.batch_size,
            *frame_sets[name],
            task.bias or config.bias,
            pack(frame_sets[name][0], shapes, config.precision),
            pack(frame_sets[name][1], shapes, config.precision) if frame_sets[name][1] else None,
        )
        for name, task in settings.items()
    )


def _structures(config: TrainConfig, frames: Sequence[Frame]) -> float:
    """About how many structures the run trains on, by its batch size where no task has its own."""
    typical = round(float(np.mean(facts(frames).n_atoms)))  # the small share their shapes with larger ones
    batch = frames_per_batch(typical, config.batch_size)
    return float(config.steps * config.accumulate * config.tasks_per_step * batch)


def groups(tasks: Sequence[Task]) -> tuple[Group, ...]:
    """The tasks put together by the form of their heads and losses."""
    potential = tasks[0].potential
    groups_of_tasks: list[list[int]] = []
    for k, task in enumerate(tasks):
        for members in groups_of_tasks:
            first = tasks[members[0]]
            if same_form(potential, (task.potential.head, task.loss), (first.potential.head, first.loss)):
                members.append(k)
                break
        else:
            groups_of_tasks.append([k])
    return tuple(Group("+".join(tasks[k].name for k in members), tuple(members)) for members in groups_of_tasks)


def run_loss(tasks: Sequence[Task], task_groups: Sequence[Group]) -> Loss:
    """The loss of {group: TaskBatches}, in which slots carry the number of their task within the group."""

    def one(group: Group) -> Loss:
        members = [tasks[k] for k in group.tasks]
        return heads_loss(members[0].potential, [t.potential.head for t in members], [t.loss for t in members])

    return multitask_loss({group.name: one(group) for group in task_groups})


def with_statistics(config: TrainConfig, potential: Potential, params: Params, tasks: Sequence[Task]) -> Params:
    """First parameters with what the data say: the environment from all tasks together, each head's bias from its own.

    A stored model keeps its environment; its biases follow `Task.bias`.
    """
    if config.base is None:
        params = set_environment(potential, params, join(task.frames for task in tasks))
    for head in dict.fromkeys(task.potential.head for task in tasks):
        own = [task for task in tasks if task.potential.head == head]
        if config.base is not None and own[0].bias == "keep":
            continue
        shift = config.base is not None and own[0].bias == "change"
        frames = join(task.frames for task in own)
        if config.base is None:
            params = set_parameters(own[0].potential, params, frames)
        if shift:
            frames = sample(frames, MOST)
            packed = pack(frames, own[0].train.plan, config.precision)
            predicted_frames = predictions(own[0].potential, params, packed, own[0].batch_size)
            predicted = np.array([float(p.energy) for p in predicted_frames])
        params = set_bias(own[0].potential, params, frames, predicted if shift else None)
    return params


def _check_levels(config: TrainConfig, heads: dict[str, str], frame_sets: dict[str, tuple]) -> None:
    """ValueError for a head that would learn labels of several levels of theory, unless the config allows it."""
    for head in dict.fromkeys(heads.values()):
        counts = sum((levels.levels(frame_sets[name][0]) for name in heads if heads[name] == head), Counter())
        levels.check(counts, f"The head {head}", config.mix_levels)


def _select(potential: Potential, name: str, task: TaskConfig) -> Potential:
    head = task.head or name
    if head not in potential.config.head_names:
        raise ValueError(
            f"tasks.{name}: the model has no head {head!r}; it has {', '.join(potential.config.head_names)}. Add the "
            "head to `model.heads` (or to the stored model), or name another with `head`."
        )
    return select(potential, head)


def _frames(config: TrainConfig, task: TaskConfig, potential: Potential) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """The frames to train on and those held out: of other files, or a random share of the same."""
    options = read_options(task, config)
    frames = labelled(task.train, potential, options)
    if task.validation or config.hold_out == 0:
        return frames, labelled(task.validation, potential, options)
    order = np.random.default_rng(config.seed).permutation(len(frames))
    n = max(1, round(config.hold_out * len(frames)))
    if n >= len(frames):
        raise ValueError(
            f"hold_out {config.hold_out}: nothing would be left of {len(frames)} frames to train on. Give more frames, "
            "other files as `validation` (--validation), or hold_out 0 (--set hold_out=0) to train on all of them."
        )
    return Subset(frames, np.sort(order[n:])), Subset(frames, np.sort(order[:n]))


def check_apart(sets: Iterable[tuple[Sequence[Frame], Sequence[Frame]]]) -> None:
    """A warning if frames of a validation are trained on, ValueError if all of all are; the first is named.

    `sets` are (train, held out) of every task.
    """
    shared = [(common(*one), len(one[1])) for one in sets if len(one[1])]
    messages = [
        f"{overlap[0]} of {n} frames of the validation are trained on as well, the first {overlap[1]}"
        for overlap, n in shared
        if overlap
    ]
    if messages and all(overlap and overlap[0] == n for overlap, n in shared):
        raise ValueError(
            f"{messages[0]}: their errors would say nothing of other structures. Name other files as `validation`, or "
            "leave it out and set `hold_out`."
        )
    for line in messages:
        warnings.warn(f"{line}: the errors look better than they are. Remove them from one of the sets.", stacklevel=2)


def common(train: Sequence[Frame], held_out: Sequence[Frame]) -> tuple[int, str] | None:
    """The number of frames of the second set in the first, and the names of one in both; None if there are none.

    Positions are compared only where number of atoms and energy are equal, so that large sets are not read through.
    """
    trained, judged = (list(zip(*(x.tolist() for x in facts(some)[:2]), strict=True)) for some in (train, held_out))
    alike = set(trained) & set(judged)
    places: dict[tuple, list[int]] = {}
    for j in [j for j, key in enumerate(judged) if key in alike][:MOST_COMPARED]:
        places.setdefault(_places(held_out[j]), []).append(j)
    both: dict[int, int] = {}
    for k in [k for k, key in enumerate(trained) if key in alike][:MOST_COMPARED]:
        both |= dict.fromkeys(places.pop(_places(train[k]), ()), k)
    if not both:
        return None
    j, k = min(both.items())
    return len(both), f"{source(held_out, j)}, which is {source(train, k)}"


def _places(frame: Frame) -> tuple[bytes, ...]:
    """Elements, and positions and cell to 1e-5 Å, for comparisons."""
    numbers, *rest = frame.system.numbers, frame.system.positions, frame.system.cell
    return np.asarray(numbers).tobytes(), *((np.round(x, 5) + 0.0).astype(np.float32).tobytes() for x in rest)


def labelled(paths: Any, potential: Potential, options: ReadOptions | None = None) -> Sequence[Frame]:
    """The frames of the files; ValueError for one without any label."""
    frames = open_frames(paths, elements=potential.elements, options=options or ReadOptions())
    unlabelled = ~facts(frames).weights.any(axis=1)
    if unlabelled.any():
        raise ValueError(
            f"{source(frames, int(np.argmax(unlabelled)))}: the frame has no energy, forces or stress label to train "
            "on. Looked for REF_<label>, ASE's results and <label>. Name the keys (energy_key, forces_key, "
            "stress_key), or remove the frame."
        )
    return frames
