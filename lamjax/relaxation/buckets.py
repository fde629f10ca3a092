"""The shapes in which many structures are relaxed: few, to compile little, and tight, to compute little padding.

On the host, with numpy.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import shapes
from lamjax.lattice import face_distances, image_offsets, n_images
from lamjax.neighbors import plan_capacities
from lamjax.neighbors.host import check_distances, pairs
from lamjax.neighbors.types import slots
from lamjax.potential import Potential, check_elements
from lamjax.relaxation.relax import RelaxConfig
from lamjax.system import System, check_atoms, check_single, to_ase

HEADROOM = 1.1  # slots for neighbours that come closer on the way, relative to what the start needs
SHRINKING = 1.1  # images for a cell that shrinks
MOST_NEIGHBORS, MOST_IMAGES = 2048, 20_000  # beyond this no structure is meant
PROGRAM = 1e5  # work (see `work`) that is done in the time of a compilation, by structures that take some 60 steps
FORMULA = 3e6  # the same for a potential of few parameters, whose evaluation is cheap
FEW = 1000  # parameters
SEARCH = 300  # candidates that are searched now and then in the time of one unit of work in every step


class Shape(NamedTuple):
    """Numbers of atoms, neighbours and images in the arrays of one structure."""

    n_atoms: int
    capacities: tuple[int, ...]  # slots for neighbours within each shell
    n_candidates: int  # images of atoms that a search looks at

    def holds(self, other: "Shape") -> bool:
        """True if the other one is nowhere larger."""
        return all(a >= b for a, b in zip(row(self), row(other), strict=True))


def check(potential: Potential, system: System, config: RelaxConfig) -> None:
    """Raise ValueError, saying why, for a structure that cannot be relaxed by this potential."""
    check_single(system, "A relaxation")
    check_atoms(to_ase(system))
    check_elements(potential, system)
    reach = _reach(potential, config)
    if (n := np.prod(2.0 * n_images(system.cell, system.pbc, reach) + 1)) > MOST_IMAGES:
        raise ValueError(
            f"Within {reach:g} Å an atom sees {n:.0f} images of the cell, more than {MOST_IMAGES}: its faces are "
            f"{', '.join(f'{d:.2g}' for d in face_distances(system.cell, system.pbc))} Å apart. Is the cell in Å? If "
            "it is only skewed, describe the crystal by the cell of atoms.cell.minkowski_reduce()."
        )


def shape(
    potential: Potential, system: System, config: RelaxConfig, numbers: Sequence[int] = (), room: float = HEADROOM
) -> Shape:
    """The shape of arrays for a structure, with room for more neighbours and for the `numbers` of earlier attempts.

    Raises ValueError for two atoms on one place, and for too many neighbours.
    """
    shells = potential.shells
    i, j, _, r = pairs(system, shells[0].cutoff)
    check_distances(i, j, r)
    n = system.n_atoms
    counted = [int(np.bincount(i[r <= s.cutoff], minlength=n).max(initial=0)) for s in shells]
    counted = [max(a, int(b)) for a, b in zip(counted, numbers or counted, strict=True)]
    if counted[0] > MOST_NEIGHBORS:
        raise ValueError(
            f"An atom has {counted[0]} neighbours within {shells[0].cutoff:g} Å, more than {MOST_NEIGHBORS}. "
            "Is the cell in Å, or does the potential let atoms collapse?"
        )
    roomy = tuple(math.ceil(room * f) + 2 for f in counted)
    return Shape(n, plan_capacities(roomy, shells), n * len(offsets(potential, system, config)))


def offsets(potential: Potential, system: System, config: RelaxConfig) -> np.ndarray:
    """The cell images (n_offsets, 3) that a neighbour search during the relaxation has to visit."""
    return image_offsets(system.cell, system.pbc, _reach(potential, config))


def work(boxes: np.ndarray, n_atoms: np.ndarray | int = 1) -> np.ndarray:
    """Relative cost of a step of structures that have `n_atoms` together, in boxes (..., 2 + n_shells).

    Atoms are computed and padding is not: a box costs by its slots for neighbours and the candidates of a search.
    """
    boxes = np.asarray(boxes, np.float64)
    return n_atoms * (shapes.per_atom(boxes[..., 1:-1]) + boxes[..., -1] / SEARCH)


def program(params: Any) -> float:
    """The work of evaluations that take as long as compiling one program."""
    return PROGRAM if sum(np.size(leaf) for leaf in jax.tree.leaves(params)) > FEW else FORMULA


def plan(needed: Sequence[Shape], max_programs: int, program: float = PROGRAM) -> list[Shape]:
    """At most `max_programs` shapes, cheapest first, that hold all the given ones with little padding.

    A further one is compiled only if it saves more work than a compilation, which takes the time of `program`.
    """
    rows, members = shapes.histogram(np.array([row(s) for s in needed]))
    boxes, _ = shapes.merge(rows, members * rows[:, 0], max_programs, free=0.0, least=program, cost=work)
    return [_shape(widths) for widths in boxes[np.argsort(work(boxes), kind="stable")]]


def assign(shape: Shape, boxes: Sequence[Shape]) -> int | None:
    """The cheapest box that holds the shape; None if none does."""
    fitting = [k for k, box in enumerate(boxes) if box.holds(shape)]
    return min(fitting, key=lambda k: work(row(boxes[k]), shape.n_atoms), default=None)


def row(one: Shape) -> tuple[int, ...]:
    """The widths as one row of numbers."""
    return one.n_atoms, *one.capacities, one.n_candidates


def _shape(widths: np.ndarray) -> Shape:
    n_atoms, *capacities, n_candidates = map(int, widths)
    return Shape(n_atoms, slots(capacities), n_candidates)


def _reach(potential: Potential, config: RelaxConfig) -> float:
    """The radius of a list with its skin (Å), with room for a cell that shrinks."""
    return (potential.cutoff + config.skin) * (1 if config.cell is None else SHRINKING)
