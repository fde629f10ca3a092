"""Batches of frames or pairs, in an order of seed and step number alone; frames lie one behind another in rows."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Array, Int

from lamjax import pytree
from lamjax.arguments import expect
from lamjax.data.packing import Members, Packed, Structure, only
from lamjax.data.structure_batches import PackedPairs, StructureBatch, check_batch_size, pair_batches
from lamjax.neighbors import Neighbors
from lamjax.shapes.rows import RowShape, row_shape, split
from lamjax.system import Labels, System


class Batch(NamedTuple):
    """Rows of one shape, each a list of atoms of several structures (`System.structure`).

    Atoms that are none have number 0 and come last; structures that are none have no atoms, weights 0 and frame -1.
    """

    system: System  # (n_rows, n_atoms, ...), (n_rows, n_structures, ...)
    neighbors: Neighbors  # indices within the row
    labels: Labels
    frame: Int[Array, "n_rows n_structures"]  # index of the frame in the list that was packed


@overload
def batches(packed: Packed, batch_size: int | str = "auto", **options: Any) -> Iterator[Batch]: ...
@overload
def batches(packed: PackedPairs, batch_size: int | str = "auto", **options: Any) -> Iterator[StructureBatch]: ...
def batches(
    packed: Packed | PackedPairs,
    batch_size: int | str = "auto",
    *,
    seed: int | None = 0,
    epochs: int | None = None,
    start: int = 0,
    bucket: int | None = None,
    multiple: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch | StructureBatch]:
    """Batches of one bucket each; every epoch shows every frame, or every pair, once.

    `batch_size` is a number of structures, or "auto:N" ("auto" is "auto:32"): rows of about N atoms, filled with
    structures of any sizes. A short batch has empty places, so that no new shape appears.
    The order is a function of `seed` alone (None: always the same), so `start`, a number of batches, resumes exactly.
    Every epoch shuffles the batches, and the frames among places of their size: 20 bytes a frame.
    With `bucket`, a number in the plan, only frames of that bucket are shown. A batch is spread over `multiple` rows
    (devices); of these, `part` (k, n) yields the k-th of n equal shares (processes). Of pairs, a batch has `batch_size`
    rows, a number, on one device; their buckets are the shapes that they were packed in.
    """
    check_packed(packed, "batches")
    if isinstance(packed, PackedPairs):
        if multiple != 1 or part != (0, 1):
            raise ValueError("Batches of pairs are not spread over devices: leave `multiple` and `part` out.")
        yield from _of_pairs(packed, batch_size, seed, epochs, start, bucket)
        return
    if bucket is not None:
        packed = only(packed, bucket)
    length = n_batches(packed, batch_size)
    epoch, first = divmod(start, length)
    while epochs is None or epoch < epochs:
        for members, rows in _order(packed, batch_size, seed, epoch, first):
            yield _batch(members, rows, batch_size, multiple, part)
        epoch, first = epoch + 1, 0


def n_batches(packed: Packed | PackedPairs, batch_size: int | str = "auto", bucket: int | None = None) -> int:
    """Batches in one epoch, of one bucket of the plan or of all."""
    check_packed(packed, "n_batches")
    if isinstance(packed, PackedPairs):
        members = packed.members if bucket is None else packed.members[bucket : bucket + 1]
        return sum(-(-len(some) // check_batch_size(batch_size)) for some in members)
    if bucket is not None:
        packed = only(packed, bucket)
    return sum(members.filling(batch_size).n_batches for members in packed.buckets)


def check_packed(packed: Packed | PackedPairs, function: str) -> None:
    """ArgumentError that says how frames and pairs are packed, for anything else."""
    remedy = "Pack frames or pairs first: data.pack(frames, data.plan(frames, potential.shells))."
    expect(packed, (Packed, PackedPairs), f"{function} takes packed frames or pairs", remedy)


def _of_pairs(
    packed: PackedPairs, batch_size: int | str, seed: int | None, epochs: int | None, start: int, bucket: int | None
) -> Iterator[StructureBatch]:
    """The batches of pairs from number `start` on."""
    if bucket is not None:
        packed = PackedPairs(
            packed.shapes[bucket : bucket + 1], packed.members[bucket : bucket + 1], packed.rows[bucket : bucket + 1]
        )
    epoch, skipped = divmod(start, n_batches(packed, batch_size))
    while epochs is None or epoch < epochs:
        shown = pair_batches(packed, batch_size, None if seed is None else [seed, epoch])
        yield from itertools.islice(shown, skipped, None)
        epoch, skipped = epoch + 1, 0


def _order(
    packed: Packed, batch_size: int | str, seed: int | None, epoch: int, first: int
) -> Iterator[tuple[Members, np.ndarray]]:
    """The bucket and the frames of each batch of an epoch, from number `first` on."""
    rng = None if seed is None else np.random.default_rng((seed, epoch))
    fillings = [members.filling(batch_size) for members in packed.buckets]
    drawn = [filling.drawn(rng) for filling in fillings]
    begins = np.cumsum([0, *(filling.n_batches for filling in fillings)])
    order = np.arange(begins[-1], dtype=np.int32)
    if rng is not None:
        rng.shuffle(order)
    for number in order[first:]:
        k = int(np.searchsorted(begins, number, side="right")) - 1
        a, b = fillings[k].starts[number - begins[k] :][:2]
        yield packed.buckets[k], drawn[k][a:b]


def _batch(members: Members, rows: np.ndarray, batch_size: int | str, multiple: int, part: tuple[int, int]) -> Batch:
    """The batch of these frames, restricted to the rows of this process."""
    shape = row_shape(members.bucket, batch_size, multiple)
    spread = split(members.n_atoms[rows].tolist(), batch_size, multiple)
    share = spread[part[0] * multiple // part[1] : (part[0] + 1) * multiple // part[1]]
    return pytree.stack([_row(members, rows[chosen], shape) for chosen in share])


def _row(members: Members, rows: np.ndarray, shape: RowShape) -> Batch:
    """One row of a batch: frames behind one another in one list of atoms."""
    parts = [members.structure(int(row)) for row in rows]
    like = parts[0] if parts else members.structure(0)  # an empty row has the shapes of a full one
    sizes = [part.system.n_atoms for part in parts]
    ends = np.cumsum([0, *sizes])

    def atoms(array: Callable[[Structure], Any]) -> np.ndarray:
        """An array of atoms, one structure behind another; padded with 0."""
        joined = np.zeros((shape.n_atoms, *array(like).shape[1:]), array(like).dtype)
        for part, a, b in zip(parts, ends, ends[1:], strict=False):
            joined[a:b] = array(part)
        return joined

    def each(array: Callable[[Structure], Any]) -> np.ndarray:
        """An array of structures, padded with 0."""
        joined = np.zeros((shape.n_structures, *np.shape(array(like))), np.asarray(array(like)).dtype)
        for k, part in enumerate(parts):
            joined[k] = array(part)
        return joined

    system = System(
        positions=atoms(lambda part: part.system.positions),
        numbers=atoms(lambda part: part.system.numbers),
        cell=each(lambda part: part.system.cell),
        pbc=each(lambda part: part.system.pbc),
        fparam=None if like.system.fparam is None else each(lambda part: part.system.fparam),
        aparam=None if like.system.aparam is None else atoms(lambda part: part.system.aparam),
        charge_spin=None if like.system.charge_spin is None else each(lambda part: part.system.charge_spin),
        structure=_padded(np.repeat(np.arange(len(sizes)), sizes), shape.n_atoms, shape.n_structures - 1),
    )
    own = np.arange(shape.n_atoms, dtype=np.int32)[:, None]
    indices = np.broadcast_to(own, (shape.n_atoms, like.neighbors.indices.shape[1])).copy()
    for part, a, b in zip(parts, ends, ends[1:], strict=False):
        indices[a:b] = part.neighbors.indices + np.int32(a)
    neighbors = Neighbors(
        indices=indices,
        images=atoms(lambda part: part.neighbors.images),
        mask=atoms(lambda part: part.neighbors.mask),
        inner=tuple(atoms(lambda part, k=k: part.neighbors.inner[k]) for k in range(len(like.neighbors.inner))),
        offsets=like.neighbors.offsets,
        largest_counts=each(lambda part: part.neighbors.largest_counts).max(axis=0),
        overflow=each(lambda part: part.neighbors.overflow).any(),
        truncated=each(lambda part: part.neighbors.truncated).any(),
        made_for=like.neighbors.made_for,
    )
    labels = Labels(
        energy=each(lambda part: part.labels.energy),
        forces=atoms(lambda part: part.labels.forces),
        virial=each(lambda part: part.labels.virial),
        weights=each(lambda part: part.labels.weights),
    )
    return Batch(system, neighbors, labels, _padded(members.frame[rows], shape.n_structures, -1))


def _padded(values: np.ndarray, n: int, value: int) -> np.ndarray:
    """int32 (n,), `value` beyond what is given."""
    padded = np.full(n, value, np.int32)
    padded[: len(values)] = values
    return padded
