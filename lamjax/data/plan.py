"""Few array shapes for many structures: buckets chosen before the first step, so that few programs are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data.frames import Frame
from lamjax.data.shapes import exact_shapes
from lamjax.neighbors import Shell

FREE = 0.01  # a further shape is worth a compilation if it saves more than this share of the work


class Bucket(NamedTuple):
    """The shape of one program."""

    n_atoms: int
    capacities: tuple[int, ...]  # neighbour slots for each shell, widest first


class Plan(NamedTuple):
    """The shapes of a run, and what they cost."""

    shells: tuple[Shell, ...]
    buckets: tuple[Bucket, ...]  # cheapest first
    n_frames: tuple[int, ...]  # frames in each bucket
    waste: float  # share of the work that is spent on padding

    @property
    def n_programs(self) -> int:
        """Shapes, and so compilations of each function that sees batches."""
        return len(self.buckets)


def plan(frames: Sequence[Frame], shells: Sequence[Shell], max_programs: int = 6) -> Plan:
    """At most `max_programs` shapes that hold every frame with little work on padding.

    A further shape is used only if it saves at least 1 % of the work. Neighbour slots are multiples of four, and never
    more than a model's `sel`.
    """
    if max_programs < 1 or not frames:
        raise ValueError(f"Needs at least one frame and one program; got {len(frames)} and {max_programs}.")
    shells = tuple(shells)
    shapes, members = histogram(exact_shapes(frames, shells))
    n_exact = members
    buckets, members = _merge(shapes, members, max_programs)
    order = np.argsort(work(buckets), kind="stable")
    padded, needed = np.sum(members * work(buckets)), np.sum(n_exact * work(shapes))
    return Plan(
        shells=shells,
        buckets=tuple(Bucket(int(n), tuple(map(int, c))) for n, *c in buckets[order].tolist()),
        n_frames=tuple(members[order].tolist()),
        waste=float(1 - needed / padded),
    )


def histogram(exact: np.ndarray, block: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """The different shapes (n_shapes, 1 + n_shells), and how many frames have each."""
    shapes, members = np.zeros((0, exact.shape[1]), exact.dtype), np.zeros(0, np.int64)
    for start in range(0, len(exact), block):
        some, counted = np.unique(exact[start : start + block], axis=0, return_counts=True)
        shapes, inverse = np.unique(np.concatenate([shapes, some]), axis=0, return_inverse=True)
        members = np.bincount(inverse.ravel(), np.concatenate([members, counted])).astype(np.int64)
    return shapes, members


def work(shapes: np.ndarray) -> np.ndarray:
    """Relative cost of shapes (..., 1 + n_shells): atoms times (outer slots + inner slots squared / 2), as in DPA-2."""
    shapes = np.asarray(shapes, np.float64)
    return shapes[..., 0] * (shapes[..., 1] + np.sum(shapes[..., 2:] ** 2, axis=-1) / 2)


def choose(exact: np.ndarray, plan: Plan, block: int = 1 << 20) -> np.ndarray:
    """For every exact shape (n_frames, 1 + n_shells) the cheapest bucket that holds it; -1 if none does."""
    shapes = np.array([(b.n_atoms, *b.capacities) for b in plan.buckets])
    places = np.empty(len(exact), np.int16)
    for start in range(0, len(exact), block):
        fits = np.all(exact[start : start + block, None, :] <= shapes, axis=-1)
        places[start : start + block] = np.where(fits.any(axis=1), np.argmax(fits, axis=1), -1)
    return places  # the first that fits: buckets are sorted by cost


def _merge(shapes: np.ndarray, members: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` shapes that hold the given ones, and their numbers of members.

    Shapes are added one by one, always the one of a grid that saves most, then each is exchanged for a better one as
    long as there is any; last, every shape shrinks to the largest of its members.
    """
    candidates = _candidates(shapes)
    fits = np.all(shapes[:, None, :] <= candidates, axis=-1)
    costs = members[:, None] * np.where(fits, work(candidates), np.inf)  # of each shape in each candidate
    everything = int(np.argmin(np.where(fits.all(axis=0), work(candidates), np.inf)))
    chosen = [everything]
    least = FREE * np.sum(members * work(shapes))
    while len(chosen) < limit:
        now = costs[:, chosen].min(axis=1)
        totals = np.minimum(costs, now[:, None]).sum(axis=0)
        if totals.min() > now.sum() - least:
            break
        chosen.append(int(np.argmin(totals)))
    buckets = _shrink(shapes, candidates[_exchange(costs, chosen)])
    return buckets, np.bincount(_cheapest(shapes, buckets), members, len(buckets)).astype(int)


def _candidates(shapes: np.ndarray, most: int = 1500) -> np.ndarray:
    """A grid of shapes between the smallest and the largest, and some of the shapes themselves."""
    per_axis = max(2, round(most ** (1 / shapes.shape[1])))
    axes = [np.unique(np.quantile(x, np.linspace(0, 1, per_axis), method="higher")) for x in shapes.T]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, shapes.shape[1])
    return np.concatenate([grid, shapes[:: 1 + len(shapes) // most]])


def _exchange(costs: np.ndarray, chosen: list[int]) -> list[int]:
    """The chosen columns after exchanging single ones as long as the sum of the rows' least costs falls."""
    chosen, total = list(chosen), costs[:, chosen].min(axis=1).sum()
    improved = True
    while improved:
        improved = False
        for place in range(len(chosen)):
            others = costs[:, [c for k, c in enumerate(chosen) if k != place]].min(axis=1, initial=np.inf)
            totals = np.minimum(costs, others[:, None]).sum(axis=0)
            if totals.min() < total * (1 - 1e-9):
                chosen[place], total, improved = int(np.argmin(totals)), totals.min(), True
    return chosen


def _shrink(shapes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Buckets no larger than their members need, those without members left out."""
    cost = np.inf
    while (now := np.sum(work(buckets)[_cheapest(shapes, buckets)])) < cost:
        cost, chosen = now, _cheapest(shapes, buckets)
        buckets = np.array([shapes[chosen == k].max(axis=0) for k in np.unique(chosen)])
    return buckets


def _cheapest(shapes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """For every shape the cheapest bucket that holds it."""
    fits = np.all(shapes[:, None, :] <= buckets, axis=-1)
    return np.argmin(np.where(fits, work(buckets), np.inf), axis=1)
