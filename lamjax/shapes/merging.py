"""Few shapes for many structures: boxes, chosen before the first step, that hold them with little work on padding.

A shape is a row of widths: atoms, neighbour slots within each shell, and what else an array is as wide as. A box holds
a shape that is nowhere wider.
"""

from collections.abc import Callable

import numpy as np

from lamjax.shapes.cost import work

ROUNDS = 4  # of moving the chosen shapes along their axes
STARTS = 16  # further starts of the search
FREE = 0.01  # a further shape is worth a compilation if it saves more than this share of the work

Cost = Callable[[np.ndarray], np.ndarray]  # of shapes (..., n): the work of one member in a box of this shape


def histogram(exact: np.ndarray, block: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """The different shapes (n_shapes, 1 + n_shells), and how many frames have each."""
    shapes, members = np.zeros((0, exact.shape[1]), exact.dtype), np.zeros(0, np.int64)
    for start in range(0, len(exact), block):
        some, counted = np.unique(exact[start : start + block], axis=0, return_counts=True)
        shapes, inverse = np.unique(np.concatenate([shapes, some]), axis=0, return_inverse=True)
        members = np.bincount(inverse.ravel(), np.concatenate([members, counted])).astype(np.int64)
    return shapes, members


def merge(
    shapes: np.ndarray, members: np.ndarray, limit: int, free: float = FREE, least: float = 0.0, cost: Cost = work
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` shapes that hold the given ones, and their numbers of members.

    A further shape must save more than the share `free` of the work, and more work than `least`.
    A k-median problem: candidates of a grid are added one by one, always the one that saves most, then exchanged as
    long as that helps, from several starts; last, each is moved along its axes, now with every value that occurs.
    """
    coarse, weights = _coarsen(shapes, members, cost)
    candidates = _candidates(coarse, weights, cost)
    costs = _costs(coarse, weights, candidates, cost)
    boxes = candidates[_search(costs, limit, max(least, free * np.sum(costs.min(axis=1))))]
    for _ in range(ROUNDS):
        before = _total(coarse, weights, boxes, cost)
        near = np.concatenate([boxes, _variations(coarse, boxes)])
        chosen = _exchange(_costs(coarse, weights, near, cost), list(range(len(boxes))))
        boxes = _shrink(coarse, near[chosen], cost)
        if _total(coarse, weights, boxes, cost) > before * (1 - 1e-6):
            break
    boxes = _shrink(shapes, boxes, cost)
    return boxes, np.bincount(cheapest(shapes, boxes, cost), members, len(boxes))


def _search(costs: np.ndarray, limit: int, least: float, seed: int = 0) -> list[int]:
    """Columns with a small sum of the rows' least costs: greedy, then two of them drawn anew, the best of all."""
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


def _coarsen(shapes: np.ndarray, members: np.ndarray, cost: Cost, most: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` shapes, rounded up to quantiles of the work where there are more, and their members."""
    weights, per_axis = members * cost(shapes), 64
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


def _candidates(shapes: np.ndarray, members: np.ndarray, cost: Cost, most: int = 2500) -> np.ndarray:
    """A grid of shapes between the smallest and the largest, and some of the shapes themselves."""
    per_axis, weights = max(2, round(most ** (1 / shapes.shape[1]))), members * cost(shapes)
    axes = [
        np.union1d(np.quantile(np.unique(x), np.linspace(0, 1, per_axis // 2), method="higher"),
                   _quantiles(x, weights, per_axis // 2 + 1))
        for x in shapes.T
    ]  # fmt: skip
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, shapes.shape[1])
    return np.concatenate([grid, shapes[:: 1 + len(shapes) * 4 // most]])


def _variations(shapes: np.ndarray, boxes: np.ndarray, most: int = 24) -> np.ndarray:
    """The boxes with one or two of their widths replaced by any (at most `most`, the nearest) that occur."""
    varied = []
    for box in boxes:
        near = [_nearest(np.unique(x), width, most) for x, width in zip(shapes.T, box, strict=True)]
        for a in range(len(box)):
            for b in range(a + 1, len(box)):
                first, second = (grid.ravel() for grid in np.meshgrid(near[a], near[b]))
                moved = np.tile(box, (len(first), 1))
                moved[:, a], moved[:, b] = first, second
                varied.append(moved)
    return np.unique(np.concatenate(varied), axis=0) if varied else boxes[:0]


def _nearest(values: np.ndarray, value: int, n: int) -> np.ndarray:
    place = int(np.searchsorted(values, value))
    return values[max(0, place - n // 2) : place + n // 2]


def _costs(shapes: np.ndarray, members: np.ndarray, boxes: np.ndarray, cost: Cost) -> np.ndarray:
    """(n_shapes, n_boxes) work of all members of a shape in a box, infinite where they do not fit."""
    fits = np.ones((len(shapes), len(boxes)), bool)
    for x, width in zip(shapes.T, boxes.T, strict=True):
        fits &= x[:, None] <= width
    return np.where(fits, members[:, None].astype(np.float32) * cost(boxes).astype(np.float32), np.float32(np.inf))


def _total(shapes: np.ndarray, members: np.ndarray, boxes: np.ndarray, cost: Cost) -> float:
    """Work of all members, each in the cheapest box that holds it."""
    return float(np.sum(members * cost(boxes)[cheapest(shapes, boxes, cost)]))


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


def _shrink(shapes: np.ndarray, boxes: np.ndarray, cost: Cost) -> np.ndarray:
    """Boxes no larger than their members need, those without members left out."""
    before = np.inf
    while (now := np.sum(cost(boxes)[cheapest(shapes, boxes, cost)])) < before:
        before, chosen = now, cheapest(shapes, boxes, cost)
        boxes = np.array([shapes[chosen == k].max(axis=0) for k in np.unique(chosen)])
    return boxes


def cheapest(shapes: np.ndarray, boxes: np.ndarray, cost: Cost = work) -> np.ndarray:
    """For every shape the cheapest box that holds it."""
    fits = np.all(shapes[:, None, :] <= boxes, axis=-1)
    return np.argmin(np.where(fits, cost(boxes), np.inf), axis=1)
