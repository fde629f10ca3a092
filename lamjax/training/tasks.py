"""The tasks of a run: data sets with a head each, their statistics, and the order in which steps take them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data import Batch, Frame, Packed, batches, pack, plan, read, set_bias, set_environment, set_parameters
from lamjax.losses import Loss, label_loss
from lamjax.potential import Params, Potential, select
from lamjax.training.config import TaskConfig, TrainConfig
from lamjax.training.errors import predictions

_BLOCK = 4096  # draws from one random generator: a run that is resumed need not repeat them one by one


class Task(NamedTuple):
    """One data set, and what learns from it."""

    name: str  # "" for the only one of a run
    potential: Potential  # with the head of the task
    loss: Loss
    probability: float  # of a step; they add up to 1
    batch_size: int | str
    frames: list[Frame]
    held_out: list[Frame]
    train: Packed
    validation: Packed | None


def read_tasks(config: TrainConfig, potential: Potential) -> tuple[Task, ...]:
    """The tasks of a run with frames read, checked and packed into shapes that all of them share.

    Raises ValueError for a head that the model does not have and for a frame without any label.
    """
    settings = config.tasks or {"": TaskConfig(config.train, config.validation, potential.head)}
    selected = {name: _select(potential, name, task) for name, task in settings.items()}
    found = {
        name: [_labelled(paths, potential) for paths in (task.train, task.validation)]
        for name, task in settings.items()
    }
    everything = [frame for sets in found.values() for frames in sets for frame in frames]
    shapes = plan(everything, potential.shells, config.max_programs)
    weights = {name: task.probability or len(found[name][0]) for name, task in settings.items()}
    return tuple(
        Task(
            name,
            selected[name],
            label_loss(selected[name], task.loss or config.loss),
            weights[name] / sum(weights.values()),
            config.batch_size if task.batch_size is None else task.batch_size,
            *found[name],
            pack(found[name][0], shapes, config.precision),
            pack(found[name][1], shapes, config.precision) if found[name][1] else None,
        )
        for name, task in settings.items()
    )


def order(seed: int, probabilities: Sequence[float], start: int = 0) -> Iterator[int]:
    """The number of the task of every step from `start` on: drawn by probability from seed and step alone."""
    for block in itertools.count(start // _BLOCK):
        drawn = np.random.default_rng((seed, block)).choice(len(probabilities), _BLOCK, p=probabilities)
        yield from drawn[max(0, start - block * _BLOCK) :].tolist()


def task_batches(tasks: Sequence[Task], seed: int, start: int = 0) -> Iterator[dict[str, Batch]]:
    """{task: batch} for every step from `start` on; every task goes through its frames epoch by epoch."""
    probabilities = [task.probability for task in tasks]
    taken = Counter(itertools.islice(order(seed, probabilities), start))
    streams = [
        batches(task.train, task.batch_size, seed=seed + k, start=taken[k])  # else sets of one size had one order
        for k, task in enumerate(tasks)
    ]
    for k in order(seed, probabilities, start):
        yield {tasks[k].name: next(streams[k])}


def with_statistics(config: TrainConfig, potential: Potential, params: Params, tasks: Sequence[Task]) -> Params:
    """First parameters with what the data say: the environment from all tasks together, each head's bias from its own.

    A stored model keeps its environment; its biases follow `config.bias`.
    """
    if config.base is None:
        params = set_environment(potential, params, [frame for task in tasks for frame in task.frames])
    elif config.bias == "keep":
        return params
    shift = config.base is not None and config.bias == "change"
    for head in dict.fromkeys(task.potential.head for task in tasks):
        mine = [task for task in tasks if task.potential.head == head]
        frames = [frame for task in mine for frame in task.frames]
        if config.base is None:
            params = set_parameters(mine[0].potential, params, frames)
        predicted = np.concatenate([_energies(task, params) for task in mine]) if shift else None
        params = set_bias(mine[0].potential, params, frames, predicted)
    return params


def _energies(task: Task, params: Params) -> np.ndarray:
    found = predictions(task.potential, params, task.train, task.batch_size)
    return np.array([float(p.energy) for p in found])


def _select(potential: Potential, name: str, task: TaskConfig) -> Potential:
    head = task.head or name
    if head not in potential.config.head_names:
        raise ValueError(
            f"tasks.{name}: the model has no head {head!r}; it has {', '.join(potential.config.head_names)}. Add the "
            "head to `model.heads` (or to the stored model), or name another with `head`."
        )
    return select(potential, head)


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
