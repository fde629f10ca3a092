"""The batches of a run on several tasks: the tasks and the bucket of each step, drawn at random, and their frames."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lamjax import pytree
from lamjax.data import Batch, batches, n_batches, row_shape
from lamjax.losses import TaskBatches
from lamjax.training.objectives import Drawn, drawn
from lamjax.training.sharding import ALL_ROWS, RowShare
from lamjax.training.tasks import Group, Task

BLOCK = 4096  # draws from one random generator: a run that is resumed need not repeat them one by one


def draws(seed: int, joint: np.ndarray, group: np.ndarray, slots: int = 1, start: int = 0) -> Iterator[tuple]:
    """(bucket, task of each slot) for every step from `start` on, a function of seed and step alone.

    The first slot is drawn from `joint` (n_tasks, n_buckets), the probability of a task and a bucket; the other slots
    are tasks of the same group (`group` (n_tasks,)), by their probability in that bucket.
    """
    for block in itertools.count(start // BLOCK):
        buckets, tasks = _block(seed, block, joint, group, slots)
        for k in range(max(0, start - block * BLOCK), BLOCK):
            yield int(buckets[k]), tuple(tasks[k].tolist())


def counts(seed: int, joint: np.ndarray, group: np.ndarray, slots: int, end: int) -> np.ndarray:
    """The number of draws (n_tasks, n_buckets) of each task and bucket before step `end`."""
    draws = np.zeros(joint.shape, int)
    for block in range(-(-end // BLOCK)):
        buckets, tasks = _block(seed, block, joint, group, slots)
        use = slice(0, min(BLOCK, end - block * BLOCK))
        np.add.at(draws, (tasks[use], buckets[use, None]), 1)
    return draws


def stream(
    tasks: Sequence[Task],
    groups: Sequence[Group],
    seed: int,
    *,
    slots: int = 1,
    start: int = 0,
    share: RowShare = ALL_ROWS,
) -> Iterator[tuple[Drawn, dict[str, TaskBatches]]]:
    """{group: TaskBatches} of every step from `start` on, as numpy arrays.

    One task in one slot goes through its frames epoch by epoch; else every task does so in each of its buckets.
    """
    if len(tasks) == 1 and slots == 1:
        for batch in batches(tasks[0].train, tasks[0].batch_size, seed=seed, start=start, **share._asdict()):
            yield _slots(tasks, groups[0], (0,), [batch], share.part)
        return
    joint = probabilities(tasks)
    numbers = np.array([next(g for g, one in enumerate(groups) if k in one.tasks) for k in range(len(tasks))])
    taken = counts(seed, joint, numbers, slots, start)
    sizes = _sizes(tasks, groups) if slots > 1 else None
    streams: dict[tuple[int, int], Iterator[Batch]] = {}
    for bucket, chosen in draws(seed, joint, numbers, slots, start):
        for k in set(chosen) - {task for task, b in streams if b == bucket}:
            size = tasks[k].batch_size if sizes is None else sizes[numbers[k]][bucket]
            # a seed for each task, else sets of one size had one order
            own = {"seed": seed + k, "start": int(taken[k, bucket]), "bucket": bucket, **share._asdict()}
            streams[k, bucket] = batches(tasks[k].train, size, **own)
        parts = [next(streams[k, bucket]) for k in chosen]
        yield _slots(tasks, groups[numbers[chosen[0]]], chosen, parts, share.part)


def probabilities(tasks: Sequence[Task]) -> np.ndarray:
    """(n_tasks, n_buckets) probability of a step: of the task, times the share of its batches in the bucket."""
    joint = np.zeros((len(tasks), tasks[0].train.plan.n_programs))
    for k, task in enumerate(tasks):
        for bucket in task.train.numbers:
            joint[k, bucket] = n_batches(task.train, task.batch_size, bucket)
    return joint / joint.sum(axis=1, keepdims=True) * np.array([[task.probability] for task in tasks])


def sources(tasks: Sequence[Task], groups: Sequence[Group]) -> Callable:
    """A function that names the frames of a batch {group: TaskBatches} (those that this process holds)."""
    members = {group.name: group.tasks for group in groups}

    def names(batch: dict[str, TaskBatches]) -> list[str]:
        ((group, slots),) = batch.items()
        named = []
        for shard in slots.batch.frame.addressable_shards:
            rows = range(*shard.index[0].indices(len(slots.task)))
            for row, frames in zip(rows, np.asarray(shard.data), strict=True):
                task = tasks[members[group][int(np.asarray(slots.task.addressable_data(0))[row])]]
                named += [task.train.sources[k] for k in frames.ravel().tolist() if k >= 0]
        return named

    return names


def _block(seed: int, block: int, joint: np.ndarray, group: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Buckets (BLOCK,) and tasks (BLOCK, slots) of a block of steps."""
    u = np.random.default_rng((seed, block)).random((BLOCK, slots))
    first, buckets = np.divmod(_inverse(joint.ravel(), u[:, 0]), joint.shape[1])
    tasks = np.repeat(first[:, None], slots, axis=1)
    if slots > 1:
        for bucket, g in set(zip(buckets.tolist(), group[first].tolist(), strict=True)):
            rows = (buckets == bucket) & (group[first] == g)
            tasks[rows, 1:] = _inverse(joint[:, bucket] * (group == g), u[rows, 1:])
    return buckets, tasks


def _inverse(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Numbers drawn with the given weights from uniform ones in [0, 1)."""
    total = np.cumsum(weights)
    return np.searchsorted(total / total[-1], u, side="right")


def _sizes(tasks: Sequence[Task], groups: Sequence[Group]) -> list[list[int | str]]:
    """The batch size of a slot for every group and bucket: that of its tasks which makes the widest rows."""
    buckets = tasks[0].train.plan.buckets
    sizes = [[tasks[k].batch_size for k in group.tasks] for group in groups]
    return [[max(own, key=lambda size, b=bucket: row_shape(b, size)) for bucket in buckets] for own in sizes]


def _slots(
    tasks: Any, group: Group, chosen: tuple[int, ...], parts: list[Batch], part: Any
) -> tuple[Drawn, dict[str, TaskBatches]]:
    task = np.array([group.tasks.index(k) for k in chosen], np.int32)
    batch = {group.name: TaskBatches(task, pytree.stack(parts))}
    return drawn(batch, part[1])._replace(group=group.name, tasks=chosen), batch
