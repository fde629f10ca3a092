"""Pairs of structures as batches: few array shapes, arrays made once, shuffled as often as a run passes over them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from lamjax import pytree
from lamjax.arguments import expect, expect_all
from lamjax.data.pairs import Pair, cast_pair
from lamjax.frames import check_shells
from lamjax.lattice import images_around, n_images, padded_images
from lamjax.neighbors import Neighbors, Shell, count, host_neighbors, plan_capacities
from lamjax.neighbors.verlet import SKIN
from lamjax.shapes import cheapest, histogram, merge, work
from lamjax.system import PARAMETERS, Labels, System, pad, pad_labels

HEADROOM = 1.25  # slots for neighbours that come closer on the way, relative to what start and target need
SHRINK = 0.9  # lattice vectors of the smallest cell on the way, relative to start and target, if cells vary
FREE = 0.05  # a further shape is worth compiling a whole relaxation if it saves more than this share of the work


class PairShape(NamedTuple):
    """The arrays of one pair; hashable. Each shape that a run sees is compiled once."""

    n_atoms: int
    capacities: tuple[int, ...]  # neighbour slots of each shell
    n_offsets: int  # cell images that a rebuild of the neighbours searches


class StructureBatch(NamedTuple):
    """A batch of the structure loss: starts and targets. Rows without atoms fill the last batch."""

    start: System  # (n_batch, ...)
    neighbors: Neighbors  # of the start
    target: System  # (n_batch, ...), the same atoms in the same places of the arrays; its own cell
    target_neighbors: Neighbors  # as wide as `neighbors`
    labels: Labels  # of the target; missing ones have weight 0
    fixed: Bool[Array, "n_batch n_atoms 3"]  # this Cartesian component does not move
    number: Int[Array, " n_batch"] | None = None  # of the pair among those that were packed, from 1; 0: no atoms


class PairPlan(NamedTuple):
    """Shapes for pairs."""

    shells: tuple[Shell, ...]
    shapes: tuple[PairShape, ...]  # cheapest first
    shrink: float  # how much shorter than at start and target lattice vectors may become


class PackedPairs(NamedTuple):
    """Pairs as arrays on the host, by shape."""

    shapes: tuple[PairShape, ...]
    members: tuple[tuple[int, ...], ...]  # of each shape: which of the pairs that were packed
    rows: tuple[tuple[StructureBatch, ...], ...]  # of each shape: the arrays of each member, without a batch axis


def plan_pairs(
    pairs: Sequence[Pair], shells: Sequence[Shell], max_programs: int = 3
) -> list[tuple[PairShape, list[int]]]:
    """At most `max_programs` shapes, and which pairs have each, so that little work is spent on padding.

    There is room for the neighbours of start and target and a quarter more; `overflow` of the relaxation tells if that
    was too little. The images suffice for both cells and, if that of any pair changes, for cells a tenth shorter in
    every direction. Raises ValueError if there are no pairs.
    """
    _check_pairs(pairs, "plan_pairs")
    check_shells(shells, "plan_pairs")
    if max_programs < 1 or not pairs:
        raise ValueError(f"There are no pairs to batch, or no program: got {len(pairs)} pairs and {max_programs}.")
    shells, shrink = tuple(shells), _shrink(pairs)
    needed = np.array([(pair.start.n_atoms, *_capacities(pair, shells)) for pair in pairs])
    boxes, _ = merge(*histogram(needed), max_programs, FREE)
    boxes = boxes[np.argsort(work(boxes), kind="stable")]
    places = cheapest(needed, boxes)
    shapes = []
    for place in np.unique(places):
        members = np.flatnonzero(places == place).tolist()
        n_atoms, *capacities = needed[members].max(axis=0).tolist()
        n_offsets = max(len(_images(pairs[k], shells[0].cutoff + SKIN, shrink)) for k in members)
        shapes.append((PairShape(n_atoms, tuple(capacities), n_offsets), members))
    return shapes


def pair_plan(pairs: Sequence[Pair], shells: Sequence[Shell], max_programs: int = 3) -> PairPlan:
    """The shapes of `plan_pairs`, for `pack`."""
    shapes = tuple(shape for shape, _ in plan_pairs(pairs, shells, max_programs))
    return PairPlan(tuple(shells), shapes, _shrink(pairs))


def pack_pairs(pairs: Sequence[Pair], shells: Sequence[Shell], max_programs: int = 3) -> PackedPairs:
    """The pairs in the shapes of `plan_pairs`, all neighbours found: once, for as many epochs as are wanted.

    Takes about 34 bytes for each neighbour slot. Raises ValueError if there are no pairs, and for frame or atomic
    parameters that only some of them carry.
    """
    _check_pairs(pairs, "pack_pairs")
    check_shells(shells, "pack_pairs")
    pairs = _alike(pairs)
    return _packed(pairs, plan_pairs(pairs, shells, max_programs), tuple(shells), _shrink(pairs))


def pack_planned(pairs: Sequence[Pair], plan: PairPlan) -> PackedPairs:
    """The pairs in the first shapes of a plan that they fit; ValueError naming one that fits none."""
    _check_pairs(pairs, "pack")
    pairs = _alike(pairs)
    places = [_place(pair, plan) for pair in pairs]
    members = [[k for k, place in enumerate(places) if place == n] for n in range(len(plan.shapes))]
    return _packed(pairs, list(zip(plan.shapes, members, strict=True)), plan.shells, plan.shrink)


def _packed(
    pairs: Sequence[Pair], shapes: Sequence[tuple[PairShape, list[int]]], shells: tuple[Shell, ...], shrink: float
) -> PackedPairs:
    """The arrays of the pairs that have each shape; shapes without any are left out."""
    chosen = [(shape, tuple(members)) for shape, members in shapes if members]

    def row(k: int, shape: PairShape) -> StructureBatch:
        return _row(pairs[k], shape, shells, shrink)._replace(number=np.int32(k + 1))

    return PackedPairs(
        shapes=tuple(shape for shape, _ in chosen),
        members=tuple(members for _, members in chosen),
        rows=tuple(tuple(row(k, shape) for k in members) for shape, members in chosen),
    )


def _place(pair: Pair, plan: PairPlan) -> int:
    """Which of the shapes of a plan is the first that a pair fits."""
    needed = (
        pair.start.n_atoms,
        *_needed(pair, plan.shells),
        len(_images(pair, plan.shells[0].cutoff + SKIN, plan.shrink)),
    )
    for place, shape in enumerate(plan.shapes):
        if all(n <= room for n, room in zip(needed, (shape.n_atoms, *shape.capacities, shape.n_offsets), strict=True)):
            return place
    raise ValueError(
        f"{pair.source}: {needed[0]} atoms, {needed[1:-1]} neighbours and {needed[-1]} images fit none of the planned "
        f"shapes {[tuple(shape) for shape in plan.shapes]}. Plan with all pairs, validation included."
    )


def _needed(pair: Pair, shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """Neighbours of start or target in each shell, whichever has more."""
    return tuple(np.max([count(system, shells) for system in (pair.start, pair.target)], axis=0).tolist())


def pair_batches(
    packed: PackedPairs, batch_size: int | str, seed: int | Sequence[int] | None = None
) -> Iterator[StructureBatch]:
    """Every pair once, in batches of one shape each; the last batch of a shape is filled by empty rows (all zeros).

    With a `seed` the pairs of a shape and the batches of all shapes are shuffled; without, they come in the order of
    `packed.members`. Raises ValueError for a batch size below one.
    """
    remedy = "Pack the pairs first: data.pack_pairs(pairs, potential.shells); frames have data.batches."
    expect(packed, PackedPairs, "pair_batches takes packed pairs", remedy)
    batch_size = check_batch_size(batch_size)
    rng = None if seed is None else np.random.default_rng(seed)
    batches: list[list[StructureBatch]] = []
    for rows in packed.rows:
        order = np.arange(len(rows)) if rng is None else rng.permutation(len(rows))
        batches += [[rows[i] for i in order[k : k + batch_size]] for k in range(0, len(rows), batch_size)]
    for k in range(len(batches)) if rng is None else rng.permutation(len(batches)):
        empty = jax.tree.map(np.zeros_like, batches[k][0])
        yield pytree.stack(batches[k] + [empty] * (batch_size - len(batches[k])))


def check_batch_size(batch_size: int | str) -> int:
    """The number of pairs in a batch; ValueError for what is none."""
    if isinstance(batch_size, str) or batch_size != int(batch_size):
        raise ValueError(f"batch_size must be a whole number of pairs, got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return int(batch_size)


def _check_pairs(pairs: Sequence[Pair], function: str) -> None:
    remedy = "Read them with data.read_pairs(path), or make them of frames with data.pairs_from_frames."
    expect_all(pairs, Pair, f"{function} takes a list of pairs", remedy)


def _row(pair: Pair, shape: PairShape, shells: tuple[Shell, ...], shrink: float) -> StructureBatch:
    images = padded_images(_images(pair, shells[0].cutoff + SKIN, shrink), shape.n_offsets)
    start, target = pad(pair.start, shape.n_atoms), pad(pair.target, shape.n_atoms)
    return StructureBatch(
        start=start,
        neighbors=host_neighbors(start, shells, shape.capacities)._replace(offsets=images),
        target=target,
        target_neighbors=host_neighbors(target, shells, shape.capacities)._replace(offsets=images),
        labels=pad_labels(pair.labels, shape.n_atoms),
        fixed=np.pad(pair.fixed, ((0, shape.n_atoms - len(pair.fixed)), (0, 0))),
    )


def _capacities(pair: Pair, shells: tuple[Shell, ...]) -> tuple[int, ...]:
    """Slots for each shell that hold the neighbours of start and target, with headroom for the way between."""
    n_neighbors = np.asarray(_needed(pair, shells))
    return plan_capacities(tuple(np.ceil(HEADROOM * n_neighbors).astype(int).tolist()), shells)


def _shrink(pairs: Sequence[Pair]) -> float:
    """The factor by which lattice vectors may become shorter than at start and target."""
    return 1.0 if all(np.array_equal(pair.start.cell, pair.target.cell) for pair in pairs) else SHRINK


def _images(pair: Pair, cutoff: float, shrink: float) -> np.ndarray:
    """The cell images (n_offsets, 3) that the neighbours of every cell between start and target are in, home first."""
    systems = (pair.start, pair.target)
    return images_around(np.max([n_images(shrink * s.cell, s.pbc, cutoff) for s in systems], axis=0))


def _alike(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in jax's floats; ValueError naming two of which one has one of PARAMETERS and one not, or wider."""
    for name in PARAMETERS:
        first_sources: dict[str, str] = {}  # width -> source of the first pair with it
        for pair in pairs:
            for value in (getattr(pair.start, name), getattr(pair.target, name)):
                first_sources.setdefault("no" if value is None else f"{value.shape[-1]} numbers", pair.source)
        if len(first_sources) > 1:
            widths = "; ".join(f"{width} {name} in {source}" for width, source in first_sources.items())
            raise ValueError(
                f"All starts and targets carry the same {name} or none does: {widths}. Add it or pack them apart."
            )
    return [cast_pair(pair, jax.dtypes.canonicalize_dtype(pair.start.positions.dtype)) for pair in pairs]
