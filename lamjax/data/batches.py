"""From frames to stacked arrays of the planned shapes, in an order that a seed and a step number determine."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from lamjax import pytree
from lamjax.data.frames import Frame, Joined, Names, Subset, source
from lamjax.data.plan import Bucket as Shape
from lamjax.data.plan import Plan, choose
from lamjax.data.shapes import exact_shapes
from lamjax.data.store import Store
from lamjax.neighbors import Neighbors
from lamjax.neighbors.host import host_neighbors
from lamjax.neighbors.types import round_up
from lamjax.system import Labels, System, pad, pad_labels

MEMORY = 2**30  # bytes of packed rows, above which they are made batch by batch


class Batch(NamedTuple):
    """Structures of one bucket with a leading axis; an empty row has numbers 0, weights 0 and frame -1."""

    system: System
    neighbors: Neighbors
    labels: Labels
    frame: Int[Array, " batch"]  # index of the frame in the list that was packed


class Rows(NamedTuple):
    """The frames of one bucket that are made into rows only when a batch asks for them; 4 bytes a frame."""

    frame: np.ndarray  # (n,) index of the frame in the set that was packed
    frames: Sequence[Frame]
    plan: Plan
    shape: Shape
    dtype: np.dtype

    def take(self, rows: np.ndarray) -> Batch:
        """These rows, just as a bucket in memory holds them."""
        chosen = rows if len(rows) else [0]  # an empty share has the shapes of a full one
        made = [_row(k, self.frames[k], self.plan, self.shape, self.dtype) for k in self.frame[chosen].tolist()]
        return pytree.take(pytree.stack(made), slice(len(rows)))


class Packed(NamedTuple):
    """All frames by bucket (empty buckets left out): stacked numpy arrays, neighbours included, or `Rows`."""

    plan: Plan
    buckets: tuple[Batch | Rows, ...]
    numbers: tuple[int, ...]  # which bucket of the plan each of them is
    sources: Sequence[str]  # of every frame, for messages


def pack(frames: Sequence[Frame], plan: Plan, dtype=None, memory: float = MEMORY) -> Packed:
    """The frames in their buckets; positions, cells, forces and virials in `dtype`, neighbours found.

    `dtype` is jax's default float unless given; energies stay float64. If the arrays of all rows took more than
    `memory` bytes, rows are made when a batch asks for them, with the same numbers.
    Raises ValueError for a frame that fits no bucket of the plan, and for frame or atomic parameters that only some
    frames carry.
    """
    _require_alike(frames)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)
    places = _places(frames, plan)
    used = np.unique(places).tolist()
    rows = [Rows(np.flatnonzero(places == b).astype(np.int32), frames, plan, plan.buckets[b], dtype) for b in used]
    if sum(len(one.frame) * row_bytes(one.shape, dtype) for one in rows) > memory:
        return Packed(plan, tuple(rows), tuple(used), Names(frames))
    buckets = [one.take(np.arange(len(one.frame))) for one in rows]
    return Packed(plan, tuple(buckets), tuple(used), tuple(source(frames, k) for k in range(len(frames))))


def row_bytes(shape: Shape, dtype: np.dtype) -> int:
    """Memory of one frame in a bucket, without fparam and aparam."""
    per_atom = 6 * dtype.itemsize + 4 + 17 * shape.capacities[0] + sum(shape.capacities[1:])
    return shape.n_atoms * per_atom + 21 * dtype.itemsize + 32


def batches(
    packed: Packed,
    batch_size: int | str = "auto",
    *,
    seed: int | None = 0,
    epochs: int | None = None,
    start: int = 0,
    bucket: int | None = None,
    multiple: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches of one bucket each; every epoch shows every frame once.

    `batch_size` is a number of structures, or "auto:N": as many as hold N atoms (ceil(N / n_atoms); "auto" is
    "auto:32"), as in DeePMD-kit. A short batch is filled with empty rows, so that no new shape appears.
    The order is a function of `seed` alone (None: as in the file), so `start`, a number of batches, resumes exactly.
    Every epoch has its own permutation of all frames of a bucket and of all batches: 4 bytes a frame and a batch.
    With `bucket`, a number in the plan, only frames of that bucket are shown. Rows are filled up to a multiple of
    `multiple` (devices); of these, `part` (k, n) yields the k-th of n equal shares (processes).
    """
    if bucket is not None:
        packed = only(packed, bucket)
    length = n_batches(packed, batch_size)
    sizes = [round_up(frames_per_batch(n, batch_size), multiple) for n in _widths(packed)]
    epoch, first = divmod(start, length)
    while epochs is None or epoch < epochs:
        for k, rows in _order(packed, batch_size, seed, epoch, first):
            share = slice(part[0] * sizes[k] // part[1], (part[0] + 1) * sizes[k] // part[1])
            yield _batch(packed.buckets[k], rows[share], sizes[k] // part[1])
        epoch, first = epoch + 1, 0


def n_batches(packed: Packed, batch_size: int | str = "auto", bucket: int | None = None) -> int:
    """Batches in one epoch, of one bucket of the plan or of all."""
    if bucket is not None:
        packed = only(packed, bucket)
    return sum(_lengths(packed, batch_size))


def only(packed: Packed, bucket: int) -> Packed:
    """The frames of one bucket of the plan; ValueError if there is none."""
    if bucket not in packed.numbers:
        raise ValueError(f"No frame is in bucket {bucket} of the plan; there are frames in {list(packed.numbers)}.")
    return packed._replace(buckets=(packed.buckets[packed.numbers.index(bucket)],), numbers=(bucket,))


def _widths(packed: Packed) -> list[int]:
    """Atoms of the arrays of each bucket."""
    return [packed.plan.buckets[number].n_atoms for number in packed.numbers]


def _lengths(packed: Packed, batch_size: int | str) -> list[int]:
    """Batches in one epoch of each bucket."""
    sizes = [frames_per_batch(n, batch_size) for n in _widths(packed)]
    return [math.ceil(len(bucket.frame) / size) for bucket, size in zip(packed.buckets, sizes, strict=True)]


def _order(packed: Packed, batch_size, seed: int | None, epoch: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """The batches of an epoch from the `first` on: bucket, and rows in it."""
    sizes, lengths = [frames_per_batch(n, batch_size) for n in _widths(packed)], _lengths(packed, batch_size)
    rows = [np.arange(len(bucket.frame), dtype=np.int32) for bucket in packed.buckets]
    order = np.arange(sum(lengths), dtype=np.int32)
    if seed is not None:
        rng = np.random.default_rng((seed, epoch))
        for one in (*rows, order):
            rng.shuffle(one)
    starts = np.cumsum([0, *lengths])
    for number in order[first:]:
        k = int(np.searchsorted(starts, number, side="right")) - 1
        a = int(number - starts[k]) * sizes[k]
        yield k, rows[k][a : a + sizes[k]]


def frames_per_batch(n_atoms: int, batch_size: int | str) -> int:
    """Structures in a batch of a bucket of `n_atoms`; ValueError for a batch size that is none."""
    if isinstance(batch_size, str):
        kind, _, atoms = batch_size.partition(":")
        if kind != "auto" or not (atoms or "32").isdigit() or int(atoms or 32) < 1:
            raise ValueError(f'batch_size must be a number, "auto" or "auto:N", got {batch_size!r}.')
        return math.ceil(int(atoms or 32) / n_atoms)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return batch_size


def _batch(bucket: Batch | Rows, rows: np.ndarray, size: int) -> Batch:
    batch = bucket.take(rows) if isinstance(bucket, Rows) else pytree.take(bucket, rows)
    missing = size - len(rows)
    if missing == 0:
        return batch
    return jax.tree.map(lambda *parts: np.concatenate(parts), batch, _empty(batch, missing))


def _places(frames: Sequence[Frame], plan: Plan) -> np.ndarray:
    """The bucket of every frame; ValueError naming one that fits none."""
    shapes = exact_shapes(frames, plan.shells)
    places = choose(shapes, plan)
    if (places < 0).any():
        k = int(np.argmin(places))
        raise ValueError(
            f"{source(frames, k)}: {tuple(shapes[k].tolist())} (atoms, neighbour slots) fits none of the planned "
            f"shapes {[(b.n_atoms, *b.capacities) for b in plan.buckets]}. Plan with all frames, validation included."
        )
    return places


def _row(index: int, frame: Frame, plan: Plan, bucket, dtype) -> Batch:
    system = pad(frame.system, bucket.n_atoms)
    neighbors = host_neighbors(system, plan.shells, bucket.capacities)
    neighbors = neighbors._replace(offsets=np.zeros((0, 3), np.int32))  # only a rebuild needs them
    system = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, system)
    labels = pad_labels(frame.labels, bucket.n_atoms)
    labels = labels._replace(
        forces=labels.forces.astype(dtype), virial=labels.virial.astype(dtype), weights=labels.weights.astype(dtype)
    )
    return Batch(system, neighbors, labels, np.int32(index))


def _require_alike(frames: Sequence[Frame]) -> None:
    """ValueError naming two frames if fparam or aparam is there in one and not, or of another width, in the other."""
    for name in ("fparam", "aparam"):
        found: dict[str, str] = {}  # width -> source of the first frame with it
        for frame in _representatives(frames):
            value = getattr(frame.system, name)
            found.setdefault("no" if value is None else f"{value.shape[-1]} numbers", frame.source)
        if len(found) > 1:
            said = "; ".join(f"{width} {name} in {source}" for width, source in found.items())
            raise ValueError(
                f"Either all frames carry the same {name} or none does: {said}. Add it or read them apart."
            )


def _representatives(frames: Sequence[Frame]) -> Iterator[Frame]:
    """Frames enough to say which parameters there are: one of a store, whose frames are alike."""
    match frames:
        case Store():
            yield frames[0]
        case Subset(frames=Store() | Joined() as whole):
            yield from _representatives(whole)
        case Joined():
            for part in frames.parts:
                yield from _representatives(part)
        case _:
            yield from frames


def _empty(batch: Batch, n: int) -> Batch:
    """n rows without a structure, in the shapes of the batch."""
    empty = jax.tree.map(lambda x: np.zeros((n, *x.shape[1:]), x.dtype), batch)
    own = np.arange(batch.system.n_atoms, dtype=batch.neighbors.indices.dtype)[:, None]
    indices = np.broadcast_to(own, empty.neighbors.indices.shape)
    return empty._replace(neighbors=empty.neighbors._replace(indices=indices), frame=np.full(n, -1, np.int32))
