"""Few array shapes for many structures: buckets chosen before the first step, so that few programs are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data.read import Frame
from lamjax.neighbors import Shell, count, plan_capacities

FREE = 0.01  # two buckets are merged for the asking if this adds less than 1 % to the work


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

    Starts from the exact shapes and keeps merging the two whose union costs least. Neighbour slots are multiples of
    four, and never more than a model's `sel`.
    """
    if max_programs < 1 or not frames:
        raise ValueError(f"Needs at least one frame and one program; got {len(frames)} and {max_programs}.")
    shells = tuple(shells)
    exact = np.array([shape(frame, shells) for frame in frames])
    shapes, members = np.unique(exact, axis=0, return_counts=True)
    buckets, members = _merge(shapes, members, max_programs)
    order = np.argsort(work(buckets), kind="stable")
    padded, needed = np.sum(members * work(buckets)), np.sum(work(exact))
    return Plan(
        shells=shells,
        buckets=tuple(Bucket(int(n), tuple(map(int, c))) for n, *c in buckets[order].tolist()),
        n_frames=tuple(members[order].tolist()),
        waste=float(1 - needed / padded),
    )


def shape(frame: Frame, shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """The smallest bucket of one frame: number of atoms, then slots for each shell."""
    return (frame.system.n_atoms, *plan_capacities(count(frame.system, shells), shells))


def work(shapes: np.ndarray) -> np.ndarray:
    """Relative cost of shapes (..., 1 + n_shells): atoms times (outer slots + inner slots squared / 2), as in DPA-2."""
    shapes = np.asarray(shapes, np.float64)
    return shapes[..., 0] * (shapes[..., 1] + np.sum(shapes[..., 2:] ** 2, axis=-1) / 2)


def choose(exact: np.ndarray, plan: Plan) -> np.ndarray:
    """For every exact shape (n_frames, 1 + n_shells) the cheapest bucket that holds it; -1 if none does."""
    shapes = np.array([(b.n_atoms, *b.capacities) for b in plan.buckets])
    fits = np.all(np.asarray(exact)[:, None, :] <= shapes, axis=-1)
    return np.where(fits.any(axis=1), np.argmax(fits, axis=1), -1)  # buckets are sorted by cost


def _merge(shapes: np.ndarray, members: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and their numbers of members after merging the cheapest pair again and again."""
    shapes, members = shapes.copy(), members.copy()
    total = np.sum(members * work(shapes))
    added = np.array([_added(k, shapes, members) for k in range(len(shapes))])  # extra work of a union
    while len(shapes) > 1:
        a, b = sorted(np.unravel_index(np.argmin(added), added.shape))
        if len(shapes) <= limit and added[a, b] > FREE * total:
            break
        shapes[a], members[a] = np.maximum(shapes[a], shapes[b]), members[a] + members[b]
        keep = np.arange(len(shapes)) != b
        shapes, members, added = shapes[keep], members[keep], added[keep][:, keep]
        added[a] = added[:, a] = _added(a, shapes, members)
    return shapes, members


def _added(k: int, shapes: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Extra work if shape k is united with each of the others; infinite for itself."""
    union = work(np.maximum(shapes, shapes[k])) * (members + members[k])
    extra = union - members * work(shapes) - members[k] * work(shapes[k])
    extra[k] = np.inf
    return extra
