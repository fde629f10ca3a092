"""Few array shapes for many structures: buckets chosen before the first step, so that few programs are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data.frames import Frame, check_frames, check_shells
from lamjax.data.rows import Bucket as Bucket
from lamjax.data.rows import fill, frames_per_batch, row_shape, wanted_atoms
from lamjax.data.shapes import exact_shapes
from lamjax.neighbors import Shell

ROUNDS = 4  # of moving the chosen shapes along their axes
STARTS = 16  # further starts of the search
FREE = 0.01  # a further shape is worth a compilation if it saves more than this share of the work
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
    all, only if it saves more than its compilation costs. Neighbour slots are multiples of four, and never more than a
    model's `sel`.
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


def histogram(exact: np.ndarray, block: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """The different shapes (n_shapes, 1 + n_shells), and how many frames have each."""
    shapes, members = np.zeros((0, exact.shape[1]), exact.dtype), np.zeros(0, np.int64)
    for start in range(0, len(exact), block):
        some, counted = np.unique(exact[start : start + block], axis=0, return_counts=True)
        shapes, inverse = np.unique(np.concatenate([shapes, some]), axis=0, return_inverse=True)
        members = np.bincount(inverse.ravel(), np.concatenate([members, counted])).astype(np.int64)
    return shapes, members


def work(shapes: np.ndarray) -> np.ndarray:
    """Relative cost of shapes (..., 1 + n_shells): atoms times (20 + outer + 2.8 first inner + each inner² / 22) slots.

    Fitted to the memory traffic that XLA counts for a training step of DPA-2 small, as its times on a processor are.
    """
    shapes = np.asarray(shapes, np.float64)
    inner = shapes[..., 2:]
    per_atom = 20 + shapes[..., 1] + 2.8 * np.sum(inner[..., :1], axis=-1) + np.sum(inner**2, axis=-1) / 22
    return shapes[..., 0] * per_atom


def choose(exact: np.ndarray, plan: Plan, block: int = 1 << 20) -> np.ndarray:
    """For every exact shape (n_frames, 1 + n_shells) the cheapest bucket that holds it; -1 if none does."""
    shapes = np.array([(b.n_atoms, *b.capacities) for b in plan.buckets])
    places = np.empty(len(exact), np.int16)
    for start in range(0, len(exact), block):
        fits = np.all(exact[start : start + block, None, :] <= shapes, axis=-1)
        places[start : start + block] = np.where(fits.any(axis=1), np.argmax(fits, axis=1), -1)
    return places  # the first that fits: buckets are sorted by cost


def merge(shapes: np.ndarray, members: np.ndarray, limit: int, free: float = FREE) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` shapes that hold the given ones, and their numbers of members.

    A k-median problem: candidates of a grid are added one by one, always the one that saves most, then exchanged as
    long as that helps, from several starts; last, each is moved along its axes, now with every value that occurs.
    """
    coarse, weights = _coarsen(shapes, members)
    candidates = _candidates(coarse, weights)
    costs = _costs(coarse, weights, candidates)
    boxes = candidates[_search(costs, limit, free)]
    for _ in range(ROUNDS):
        before = _total(coarse, weights, boxes)
        near = np.concatenate([boxes, _variations(coarse, boxes)])
        chosen = _exchange(_costs(coarse, weights, near), list(range(len(boxes))))
        boxes = _shrink(coarse, near[chosen])
        if _total(coarse, weights, boxes) > before * (1 - 1e-6):
            break
    buckets = _shrink(shapes, boxes)
    return buckets, np.bincount(cheapest(shapes, buckets), members, len(buckets))


def _search(costs: np.ndarray, limit: int, free: float, seed: int = 0) -> list[int]:
    """Columns with a small sum of the rows' least costs: greedy, then two of them drawn anew, the best of all."""
    least = free * np.sum(costs.min(axis=1))
    everything = int(np.argmin(costs.sum(axis=0)))
    best = _exchange(costs, _add(costs, [everything], limit, least))
    total, rng = costs[:, best].min(axis=1).sum(), np.random.default_rng(seed)
    for _ in range(STARTS if len(best) > 1 else 0):
        start = [*rng.permutation(best)[: len(best) - 2].tolist(), int(rng.integers(costs.shape[1]))]
        if not np.isfinite(costs[:, start].min(axis=1)).all():
            start = [everything, *start]
        other = _exchange(costs, _add(costs, start[: len(best)], len(best), 0.0))
        if (now := costs[:, other].min(axis=1).sum()) < total * (1 - 1e-9):
            best, total = other, now
    return best


def _add(costs: np.ndarray, chosen: list[int], limit: int, least: float) -> list[int]:
    """The chosen columns and more, up to `limit`, each the one that saves most and more than `least`."""
    chosen = list(chosen)
    while len(chosen) < limit:
        now = costs[:, chosen].min(axis=1)
        totals = np.minimum(costs, now[:, None]).sum(axis=0)
        if totals.min() >= now.sum() - least:
            break
        chosen.append(int(np.argmin(totals)))
    return chosen


def _coarsen(shapes: np.ndarray, members: np.ndarray, most: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` shapes, rounded up to quantiles of the work where there are more, and their members."""
    weights, per_axis = members * work(shapes), 64
    rounded, counted = shapes, members
    while len(rounded) > most:
        axes = [_quantiles(x, weights, per_axis) for x in shapes.T]
        up = np.stack([axis[np.searchsorted(axis, x)] for axis, x in zip(axes, shapes.T, strict=True)], axis=1)
        rounded, inverse = np.unique(up, axis=0, return_inverse=True)
        counted, per_axis = np.bincount(inverse.ravel(), members), max(2, per_axis * 3 // 4)
    return rounded, counted


def _quantiles(values: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """At most n of the values, the largest one included, with about equal weight between them."""
    unique, inverse = np.unique(values, return_inverse=True)
    share = np.cumsum(np.bincount(inverse.ravel(), weights))
    places = np.searchsorted(share, share[-1] * np.linspace(0, 1, n + 1)[1:] * (1 - 1e-12))
    return unique[np.unique(np.append(np.minimum(places, len(unique) - 1), len(unique) - 1))]


def _candidates(shapes: np.ndarray, members: np.ndarray, most: int = 2500) -> np.ndarray:
    """A grid of shapes between the smallest and the largest, and some of the shapes themselves."""
    per_axis, weights = max(2, round(most ** (1 / shapes.shape[1]))), members * work(shapes)
    axes = [
        np.union1d(np.quantile(np.unique(x), np.linspace(0, 1, per_axis // 2), method="higher"),
                   _quantiles(x, weights, per_axis // 2 + 1))
        for x in shapes.T
    ]  # fmt: skip
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, shapes.shape[1])
    return np.concatenate([grid, shapes[:: 1 + len(shapes) * 4 // most]])


def _variations(shapes: np.ndarray, boxes: np.ndarray, most: int = 24) -> np.ndarray:
    """The boxes with one or two of their widths replaced by any (at most `most`, the nearest) that occur."""
    found = []
    for box in boxes:
        near = [_nearest(np.unique(x), width, most) for x, width in zip(shapes.T, box, strict=True)]
        for a in range(len(box)):
            for b in range(a + 1, len(box)):
                first, second = (grid.ravel() for grid in np.meshgrid(near[a], near[b]))
                moved = np.tile(box, (len(first), 1))
                moved[:, a], moved[:, b] = first, second
                found.append(moved)
    return np.unique(np.concatenate(found), axis=0) if found else boxes[:0]


def _nearest(values: np.ndarray, value: int, n: int) -> np.ndarray:
    place = int(np.searchsorted(values, value))
    return values[max(0, place - n // 2) : place + n // 2]


def _costs(shapes: np.ndarray, members: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n_shapes, n_boxes) work of all members of a shape in a box, infinite where they do not fit."""
    fits = np.ones((len(shapes), len(boxes)), bool)
    for x, width in zip(shapes.T, boxes.T, strict=True):
        fits &= x[:, None] <= width
    return np.where(fits, members[:, None].astype(np.float32) * work(boxes).astype(np.float32), np.float32(np.inf))


def _total(shapes: np.ndarray, members: np.ndarray, boxes: np.ndarray) -> float:
    """Work of all members, each in the cheapest box that holds it."""
    return float(np.sum(members * work(boxes)[cheapest(shapes, boxes)]))


def _exchange(costs: np.ndarray, chosen: list[int]) -> list[int]:
    """The chosen columns after exchanging single ones as long as the sum of the rows' least costs falls."""
    chosen, total = list(chosen), costs[:, chosen].min(axis=1).sum(dtype=np.float64)
    place, unchanged = 0, 0
    while unchanged < len(chosen):
        others = costs[:, chosen[:place] + chosen[place + 1 :]].min(axis=1, initial=np.inf)
        totals = np.minimum(costs, others[:, None]).sum(axis=0)
        best = int(np.argmin(totals))
        if totals[best] < total * (1 - 1e-5):
            chosen[place], total, unchanged = best, totals[best], 0
        place, unchanged = (place + 1) % len(chosen), unchanged + 1
    return chosen


def _shrink(shapes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Buckets no larger than their members need, those without members left out."""
    cost = np.inf
    while (now := np.sum(work(buckets)[cheapest(shapes, buckets)])) < cost:
        cost, chosen = now, cheapest(shapes, buckets)
        buckets = np.array([shapes[chosen == k].max(axis=0) for k in np.unique(chosen)])
    return buckets


def cheapest(shapes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """For every shape the cheapest bucket that holds it."""
    fits = np.all(shapes[:, None, :] <= buckets, axis=-1)
    return np.argmin(np.where(fits, work(buckets), np.inf), axis=1)
