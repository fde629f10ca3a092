"""Few array shapes for many structures: buckets chosen before the first step, so that few programs are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data.counting import exact_shapes
from lamjax.frames import Frame, check_frames, check_shells
from lamjax.neighbors import Shell
from lamjax.shapes.cost import work
from lamjax.shapes.merging import FREE, cheapest, histogram, merge
from lamjax.shapes.rows import Bucket, fill, frames_per_batch, row_shape, wanted_atoms

COMPILATION = 3.5e6  # work (in the units of `work`) in the time of one: about 7 s on a processor, DPA-2 small


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


def plan(
    frames: Sequence[Frame],
    shells: Sequence[Shell],
    max_programs: int = 6,
    structures: float | None = None,
    batch_size: int | str = "auto",
) -> Plan:
    """At most `max_programs` shapes that hold every frame with little work on padding in batches of `batch_size`.

    A further shape is used only if it saves at least 1 % of the work; in a run that looks at so many `structures` in
    all, only if it saves more than its compilation costs. Neighbour slots are multiples of four, of two within
    inner cutoffs, and never more than a model's `sel`.
    """
    check_frames(frames, "plan")
    check_shells(shells, "plan")
    if max_programs < 1 or not frames:
        raise ValueError(f"Needs at least one frame and one program; got {len(frames)} and {max_programs}.")
    shells = tuple(shells)
    shapes, members = histogram(exact_shapes(frames, shells))
    free = FREE
    if structures is not None:
        free = max(FREE, COMPILATION / (structures * float(np.average(work(shapes), weights=members))))
    # a frame costs its share of a batch, whose rows are as wide as wanted where its structures are smaller
    wide = np.column_stack([np.maximum(shapes[:, 0], wanted_atoms(batch_size) or 0), shapes[:, 1:]])
    share = members / np.array([frames_per_batch(n, batch_size) for n in shapes[:, 0].tolist()])
    boxes, _ = merge(wide, share, max_programs, free)
    boxes = _without_rare(wide, share, boxes[np.argsort(work(boxes), kind="stable")])
    used, places = np.unique(cheapest(wide, boxes), return_inverse=True)
    buckets, n_frames, spent = [], [], 0.0
    for k, box in enumerate(boxes[used]):
        n, counted = shapes[places == k, 0], members[places == k]
        bucket = Bucket(int(n.max()), tuple(map(int, box[1:])), int(n.min()))
        n_batches = fill(np.repeat(n, counted), bucket, batch_size).n_batches
        spent += n_batches * float(work(np.array([row_shape(bucket, batch_size).n_atoms, *bucket.capacities])))
        buckets.append(bucket)
        n_frames.append(int(counted.sum()))
    waste = float(1 - np.sum(members * work(shapes)) / spent)
    return Plan(shells, tuple(buckets), tuple(n_frames), max(0.0, waste))  # rounding may say less


def _without_rare(shapes: np.ndarray, share: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The boxes without those whose few members cost less elsewhere than a batch of their own that is hardly filled."""

    def spent(boxes: np.ndarray) -> float:
        n_batches = np.ceil(np.bincount(cheapest(shapes, boxes), share, len(boxes)) - 1e-9)
        return float(np.sum(n_batches * work(boxes)))

    while len(boxes) > 1:
        fewer = [np.delete(boxes, k, axis=0) for k in range(len(boxes))]
        fewer = [some for some in fewer if np.all(np.any(np.all(shapes[:, None, :] <= some, axis=-1), axis=1))]
        best = min(fewer, key=spent, default=boxes)
        if not spent(best) < spent(boxes):
            break
        boxes = best
    return boxes


def choose(exact: np.ndarray, plan: Plan, block: int = 1 << 20) -> np.ndarray:
    """For every exact shape (n_frames, 1 + n_shells) the cheapest bucket that holds it; -1 if none does."""
    shapes = np.array([(b.n_atoms, *b.capacities) for b in plan.buckets])
    places = np.empty(len(exact), np.int16)
    for start in range(0, len(exact), block):
        fits = np.all(exact[start : start + block, None, :] <= shapes, axis=-1)
        places[start : start + block] = np.where(fits.any(axis=1), np.argmax(fits, axis=1), -1)
    return places  # the first that fits: buckets are sorted by cost
