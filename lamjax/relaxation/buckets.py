"""The shapes in which many structures are relaxed: few, to compile little, and tight, to compute little padding.

On the host, with numpy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from lamjax.neighbors import image_offsets, plan_capacities
from lamjax.neighbors.host import check_distances, pairs
from lamjax.neighbors.types import round_up
from lamjax.potential import check_elements
from lamjax.relaxation.relax import RelaxConfig
from lamjax.system import System, check_atoms, check_single, face_distances, to_ase

HEADROOM = 1.1  # slots for neighbours that come closer on the way, relative to what the start needs
SHRINKING = 1.1  # images for a cell that shrinks
MOST_NEIGHBORS, MOST_IMAGES = 2048, 20_000  # beyond this no structure is meant
PROGRAM = 1e5  # work (see `work`) that is done in the time of a compilation, by structures that take some 60 steps
FORMULA = 3e6  # the same for a potential of few parameters, whose evaluation is cheap
FEW = 1000  # parameters
SEARCH = 300  # candidates that are searched now and then in the time of one unit of work in every step
GROUPS = 600  # different shapes that are planned for, at most


class Shape(NamedTuple):
    """Of the arrays of one structure."""

    n_atoms: int
    capacities: tuple[int, ...]  # slots for neighbours within each shell
    n_candidates: int  # images of atoms that a search looks at

    def holds(self, other: "Shape") -> bool:
        """True if the other one is nowhere larger."""
        return all(a >= b for a, b in zip(row(self), row(other), strict=True))


def check(potential, system: System, config: RelaxConfig) -> None:
    """Raise ValueError, saying why, for a structure that cannot be relaxed by this potential."""
    check_single(system, "A relaxation")
    check_atoms(to_ase(system))
    check_elements(potential, system)
    reach = _reach(potential, config)
    images = np.where(system.pbc, np.ceil(reach / np.maximum(face_distances(system.cell, system.pbc), 1e-3)), 0)
    if (n := np.prod(2 * images + 1)) > MOST_IMAGES:
        raise ValueError(
            f"Within {reach:g} Å an atom sees {n:.0f} images of the cell, more than {MOST_IMAGES}. Is the cell in Å?"
        )


def shape(potential, system: System, config: RelaxConfig, found: Sequence[int] = (), room: float = HEADROOM) -> Shape:
    """What a structure needs, with room for neighbours that come closer; `found` are numbers of neighbours met before.

    Raises ValueError for two atoms on one place, and for too many neighbours.
    """
    shells = potential.shells
    i, j, _, r = pairs(system, shells[0].cutoff)
    check_distances(i, j, r)
    n = system.n_atoms
    counted = [int(np.bincount(i[r <= s.cutoff], minlength=n).max(initial=0)) for s in shells]
    counted = [max(a, int(b)) for a, b in zip(counted, found or counted, strict=True)]
    if counted[0] > MOST_NEIGHBORS:
        raise ValueError(
            f"An atom has {counted[0]} neighbours within {shells[0].cutoff:g} Å, more than {MOST_NEIGHBORS}. "
            "Is the cell in Å, or does the potential let atoms collapse?"
        )
    roomy = tuple(math.ceil(room * f) + 2 for f in counted)
    return Shape(n, plan_capacities(roomy, shells), n * len(offsets(potential, system, config)))


def offsets(potential, system: System, config: RelaxConfig) -> np.ndarray:
    """The images (n_offsets, 3) that a search on the way has to look at."""
    return image_offsets(system.cell, system.pbc, _reach(potential, config))


def work(boxes: np.ndarray, n_atoms: np.ndarray | int) -> np.ndarray:
    """Relative cost of a step of structures that have `n_atoms` together, in boxes (..., 2 + n_shells).

    Both are computed for atoms and not for padding, the evaluation for all slots of neighbours. Its law is that of
    `data.plan.work`; measured for DPA-2 small on a processor.
    """
    boxes = np.asarray(boxes, np.float64)
    outer, inner, candidates = boxes[..., 1], boxes[..., 2:-1], boxes[..., -1]
    per_atom = 20 + outer + 2.8 * np.sum(inner[..., :1], axis=-1) + np.sum(inner**2, axis=-1) / 22
    return n_atoms * (per_atom + candidates / SEARCH)


def program(params) -> float:
    """Work that is done in the time of a compilation."""
    return PROGRAM if sum(np.size(leaf) for leaf in jax.tree.leaves(params)) > FEW else FORMULA


def plan(shapes: Sequence[Shape], max_programs: int, program: float = PROGRAM) -> list[Shape]:
    """At most `max_programs` shapes, cheapest first, that hold all the given ones with little padding.

    Two shapes are merged, always those whose merger costs least, until there are few enough and a further merger would
    cost more work than a compilation, which takes the time of `program`. Then every structure moves to the cheapest,
    and shapes shrink to who is left.
    """
    rows = np.array([row(s) for s in shapes])
    groups = _groups(rows)
    extra = np.stack([_extra(groups, k) for k in range(len(groups.boxes))])
    while len(groups.boxes) > 1:
        a, b = sorted(np.unravel_index(np.argmin(extra), extra.shape))
        if len(groups.boxes) <= max_programs and extra[a, b] > program:
            break
        groups.boxes[a] = np.maximum(groups.boxes[a], groups.boxes[b])
        groups.atoms[a] += groups.atoms[b]
        groups = Groups(*(np.delete(x, b, axis=0) for x in groups))
        extra = np.delete(np.delete(extra, b, axis=0), b, axis=1)
        extra[a] = extra[:, a] = _extra(groups, a)
    return [_shape(widths) for widths in _shrunk(rows, groups.boxes)]


def assign(shape: Shape, boxes: Sequence[Shape]) -> int | None:
    """The cheapest box that holds the shape; None if there is none."""
    fitting = [k for k, box in enumerate(boxes) if box.holds(shape)]
    return min(fitting, key=lambda k: work(row(boxes[k]), shape.n_atoms), default=None)


class Groups(NamedTuple):
    """Structures that share a box."""

    boxes: np.ndarray  # (n, 2 + n_shells)
    atoms: np.ndarray  # (n,) of all of them together


def _extra(groups: Groups, k: int) -> np.ndarray:
    """What it costs to merge the k-th group with each of the others; infinite with itself."""
    boxes, atoms = groups
    extra = work(np.maximum(boxes, boxes[k]), atoms + atoms[k]) - work(boxes, atoms) - work(boxes[k], atoms[k])
    extra[k] = np.inf
    return extra


def _groups(rows: np.ndarray) -> Groups:
    """Structures of equal shape together; shapes rounded up, to a few percent at first, where there are too many."""
    coarse, rounded = 0.02, rows
    while True:
        boxes, inverse = np.unique(rounded, axis=0, return_inverse=True)
        if len(boxes) <= GROUPS:
            return Groups(boxes, np.bincount(inverse.ravel(), rows[:, 0]))
        coarse *= 1.5
        step = np.maximum(1, 2 ** np.floor(np.log2(np.maximum(1, coarse * rows)))).astype(int)
        rounded = -(-rows // step) * step


def _shrunk(rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes no larger than those need for whom they are the cheapest; sorted by cost."""
    cost = np.inf
    while True:
        fits = np.all(rows[:, None] <= boxes, axis=-1)
        spent = np.where(fits, work(boxes, rows[:, :1]), np.inf)
        chosen = np.argmin(spent, axis=1)
        if not (total := np.sum(np.min(spent, axis=1))) < cost:
            return boxes[np.argsort(work(boxes, 1), kind="stable")]
        cost, boxes = total, np.stack([rows[chosen == k].max(axis=0) for k in np.unique(chosen)])


def row(one: Shape) -> tuple[int, ...]:
    """As one row of numbers."""
    return one.n_atoms, *one.capacities, one.n_candidates


def _shape(widths: np.ndarray) -> Shape:
    n_atoms, *capacities, n_candidates = map(int, widths)
    capacities = [round_up(c) for c in capacities]
    return Shape(n_atoms, tuple(min(c, capacities[0]) for c in capacities), n_candidates)


def _reach(potential, config: RelaxConfig) -> float:
    """How far a list with its skin sees (Å), with room for a cell that shrinks."""
    return (potential.cutoff + config.skin) * (1 if config.cell is None else SHRINKING)
