"""From frames to stacked arrays of the planned shapes, in an order that a seed and a step number determine."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from lamjax import pytree
from lamjax.data.plan import Plan, choose, shape
from lamjax.data.read import Frame
from lamjax.neighbors import Neighbors
from lamjax.neighbors.host import host_neighbors
from lamjax.neighbors.types import round_up
from lamjax.system import Labels, System, pad, pad_labels


class Batch(NamedTuple):
    """Structures of one bucket with a leading axis; an empty row has numbers 0, weights 0 and frame -1."""

    system: System
    neighbors: Neighbors
    labels: Labels
    frame: Int[Array, " batch"]  # index of the frame in the list that was packed


class Packed(NamedTuple):
    """All frames as stacked numpy arrays, one Batch a bucket (empty buckets left out), neighbours included."""

    plan: Plan
    buckets: tuple[Batch, ...]
    numbers: tuple[int, ...]  # which bucket of the plan each of them is
    sources: tuple[str, ...]  # of every frame, for messages


def pack(frames: Sequence[Frame], plan: Plan, dtype=None) -> Packed:
    """The frames in their buckets, neighbours found once; positions, cells, forces and virials in `dtype`.

    `dtype` is jax's default float unless given; energies stay float64. Raises ValueError for a frame that fits no
    bucket of the plan, and for frame or atomic parameters that only some frames carry.
    """
    _require_alike(frames)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)
    places = choose(np.array([shape(frame, plan.shells) for frame in frames]), plan)
    if (places < 0).any():
        frame = frames[int(np.argmin(places))]
        raise ValueError(
            f"{frame.source}: {shape(frame, plan.shells)} (atoms, neighbour slots) fits none of the planned shapes "
            f"{[(b.n_atoms, *b.capacities) for b in plan.buckets]}. Plan with all frames, validation included."
        )
    used = np.unique(places).tolist()
    buckets = [
        pytree.stack([_row(k, frames[k], plan, plan.buckets[b], dtype) for k in np.flatnonzero(places == b)])
        for b in used
    ]
    return Packed(plan, tuple(buckets), tuple(used), tuple(frame.source for frame in frames))


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
    With `bucket`, a number in the plan, only frames of that bucket are shown. Rows are filled up to a multiple of
    `multiple` (devices); of these, `part` (k, n) yields the k-th of n equal shares (processes).
    """
    if bucket is not None:
        packed = only(packed, bucket)
    length = n_batches(packed, batch_size)
    epoch, first = divmod(start, length)
    while epochs is None or epoch < epochs:
        for k, rows in _order(packed, batch_size, seed, epoch)[first:]:
            size = round_up(frames_per_batch(packed.buckets[k].system.n_atoms, batch_size), multiple)
            share = slice(part[0] * size // part[1], (part[0] + 1) * size // part[1])
            yield _batch(packed.buckets[k], rows[share], size // part[1])
        epoch, first = epoch + 1, 0


def n_batches(packed: Packed, batch_size: int | str = "auto", bucket: int | None = None) -> int:
    """Batches in one epoch, of one bucket of the plan or of all."""
    if bucket is not None:
        packed = only(packed, bucket)
    return sum(
        math.ceil(len(bucket.frame) / frames_per_batch(bucket.system.n_atoms, batch_size)) for bucket in packed.buckets
    )


def only(packed: Packed, bucket: int) -> Packed:
    """The frames of one bucket of the plan; ValueError if there is none."""
    if bucket not in packed.numbers:
        raise ValueError(f"No frame is in bucket {bucket} of the plan; there are frames in {list(packed.numbers)}.")
    return packed._replace(buckets=(packed.buckets[packed.numbers.index(bucket)],), numbers=(bucket,))


def _order(packed: Packed, batch_size, seed: int | None, epoch: int) -> list[tuple[int, np.ndarray]]:
    """The batches of an epoch: bucket, and rows in it."""
    rng = None if seed is None else np.random.default_rng((seed, epoch))
    chosen = []
    for k, bucket in enumerate(packed.buckets):
        n, size = len(bucket.frame), frames_per_batch(bucket.system.n_atoms, batch_size)
        rows = np.arange(n) if rng is None else rng.permutation(n)
        chosen += [(k, rows[a : a + size]) for a in range(0, n, size)]
    return chosen if rng is None else [chosen[k] for k in rng.permutation(len(chosen))]


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


def _batch(bucket: Batch, rows: np.ndarray, size: int) -> Batch:
    batch = pytree.take(bucket, rows)
    missing = size - len(rows)
    if missing == 0:
        return batch
    return jax.tree.map(lambda *parts: np.concatenate(parts), batch, _empty(batch, missing))


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
        for frame in frames:
            value = getattr(frame.system, name)
            found.setdefault("no" if value is None else f"{value.shape[-1]} numbers", frame.source)
        if len(found) > 1:
            said = "; ".join(f"{width} {name} in {source}" for width, source in found.items())
            raise ValueError(
                f"Either all frames carry the same {name} or none does: {said}. Add it or read them apart."
            )


def _empty(batch: Batch, n: int) -> Batch:
    """n rows without a structure, in the shapes of the batch."""
    empty = jax.tree.map(lambda x: np.zeros((n, *x.shape[1:]), x.dtype), batch)
    own = np.arange(batch.system.n_atoms, dtype=batch.neighbors.indices.dtype)[:, None]
    indices = np.broadcast_to(own, empty.neighbors.indices.shape)
    return empty._replace(neighbors=empty.neighbors._replace(indices=indices), frame=np.full(n, -1, np.int32))
