"""From frames to arrays: the neighbours found, in slots as many as the planned shape of the frame has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, overload
from typing import cast as as_type

import jax
import numpy as np
from jax.typing import DTypeLike

from lamjax.arguments import expect
from lamjax.data.counting import exact_shapes
from lamjax.data.frame_plan import Plan, choose
from lamjax.data.pairs import Pair
from lamjax.data.store import Store
from lamjax.data.structure_batches import PackedPairs, PairPlan, pack_planned
from lamjax.frames import Frame, Joined, Names, Subset, check_frames, source
from lamjax.lattice import home_shift
from lamjax.neighbors import Neighbors, Shell
from lamjax.neighbors.host import host_neighbors
from lamjax.shapes.rows import Bucket, Filling, fill
from lamjax.system import PARAMETERS, Labels, System, cast, moved_by

MEMORY = 2**30  # bytes of arrays, above which they are made batch by batch
OBJECTS = 2048  # bytes of Python's objects around the arrays of one frame


class Structure(NamedTuple):
    """One frame before it is put into a row: its own atoms, with the neighbour slots of its bucket."""

    system: System
    neighbors: Neighbors
    labels: Labels


@dataclass(frozen=True, eq=False)
class Members:
    """The frames of one bucket, made into arrays at once or, 4 bytes a frame, only when a batch asks for them."""

    bucket: Bucket
    frame: np.ndarray  # (n,) index in the set that was packed
    n_atoms: np.ndarray  # (n,) that it counts for: its own, and no fewer than the smallest that the plan knew
    frames: Sequence[Frame]
    shells: tuple[Shell, ...]
    dtype: np.dtype
    made: list[Structure] | None = None
    _fillings: dict[int | str, Filling] = field(default_factory=dict)

    def structure(self, row: int) -> Structure:
        """The arrays of one of the frames."""
        if self.made is not None:
            return self.made[row]
        return _structure(self.frames[int(self.frame[row])], self.shells, self.bucket.capacities, self.dtype)

    def filling(self, batch_size: int | str) -> Filling:
        """Which of them make a batch."""
        if batch_size not in self._fillings:
            self._fillings[batch_size] = fill(self.n_atoms, self.bucket, batch_size)
        return self._fillings[batch_size]

    def n_bytes(self) -> int:
        """Memory of the arrays of all, without fparam and aparam."""
        capacities, item = self.bucket.capacities, self.dtype.itemsize
        per_atom = 6 * item + 4 + 17 * capacities[0] + sum(capacities[1:])
        return int(np.sum(self.n_atoms, dtype=np.int64)) * per_atom + len(self.frame) * (21 * item + OBJECTS)


class Packed(NamedTuple):
    """Frames as arrays, by bucket; buckets without frames are left out."""

    plan: Plan
    buckets: tuple[Members, ...]
    numbers: tuple[int, ...]  # which bucket of the plan each of them is
    sources: Sequence[str]  # of every frame, for messages


@overload
def pack(frames: Sequence[Frame], plan: Plan, dtype: DTypeLike | None = None, memory: float = MEMORY) -> Packed: ...
@overload
def pack(
    frames: Sequence[Pair], plan: PairPlan, dtype: DTypeLike | None = None, memory: float = MEMORY
) -> PackedPairs: ...
def pack(
    frames: Sequence[Frame] | Sequence[Pair],
    plan: Plan | PairPlan,
    dtype: DTypeLike | None = None,
    memory: float = MEMORY,
) -> Packed | PackedPairs:
    """The frames, or the pairs, in their buckets; positions, cells, forces and virials in `dtype`, neighbours found.

    `dtype` is jax's default float unless given; energies stay float64. If the arrays took more than `memory` bytes,
    those of a frame are made when a batch asks for it, with the same numbers.
    Raises ValueError for a frame that fits no bucket of the plan, and for frame or atomic parameters that only some
    frames carry. Pairs keep the floats they were read in, for relaxations.
    """
    if isinstance(plan, PairPlan):
        return pack_planned(as_type(Sequence[Pair], frames), plan)
    frames = as_type(Sequence[Frame], frames)
    check_frames(frames, "pack")
    expect(plan, Plan, "pack takes a plan of shapes", "Make it of all frames: data.plan(frames, potential.shells).")
    _require_alike(frames)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype)
    shapes = exact_shapes(frames, plan.shells)
    places = _places(frames, shapes, plan)
    numbers = tuple(np.unique(places).tolist())
    buckets = []
    for number in numbers:
        bucket, rows = plan.buckets[number], np.flatnonzero(places == number).astype(np.int32)
        n_atoms = np.maximum(shapes[rows, 0], bucket.least)
        buckets.append(Members(bucket, rows, n_atoms, frames, plan.shells, dtype))
    if sum(one.n_bytes() for one in buckets) > memory:
        return Packed(plan, tuple(buckets), numbers, Names(frames))
    made = tuple(replace(one, made=[one.structure(k) for k in range(len(one.frame))]) for one in buckets)
    return Packed(plan, made, numbers, tuple(source(frames, k) for k in range(len(frames))))


def only(packed: Packed, bucket: int) -> Packed:
    """The frames of one bucket of the plan; ValueError if there is none."""
    if bucket not in packed.numbers:
        raise ValueError(f"No frame is in bucket {bucket} of the plan; there are frames in {list(packed.numbers)}.")
    return packed._replace(buckets=(packed.buckets[packed.numbers.index(bucket)],), numbers=(bucket,))


def _places(frames: Sequence[Frame], shapes: np.ndarray, plan: Plan) -> np.ndarray:
    """The bucket of every frame; ValueError naming one that fits none."""
    places = choose(shapes, plan)
    if (places < 0).any():
        k = int(np.argmin(places))
        raise ValueError(
            f"{source(frames, k)}: {tuple(shapes[k].tolist())} (atoms, neighbour slots) fits none of the planned "
            f"shapes {[(b.n_atoms, *b.capacities) for b in plan.buckets]}. Plan with all frames, validation included."
        )
    return places


def _require_alike(frames: Sequence[Frame]) -> None:
    """ValueError naming two frames if one of PARAMETERS is there in one and not, or of another width, in the other."""
    for name in PARAMETERS:
        first_sources: dict[str, str] = {}  # width -> source of the first frame with it
        for frame in _representatives(frames):
            value = getattr(frame.system, name)
            first_sources.setdefault("no" if value is None else f"{value.shape[-1]} numbers", frame.source)
        if len(first_sources) > 1:
            widths = "; ".join(f"{width} {name} in {source}" for width, source in first_sources.items())
            raise ValueError(
                f"Either all frames carry the same {name} or none does: {widths}. Add it or read them apart."
            )


def _representatives(frames: Any) -> Iterator[Frame]:
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


def _structure(frame: Frame, shells: tuple[Shell, ...], capacities: tuple[int, ...], dtype: np.dtype) -> Structure:
    system = frame.system
    if dtype.itemsize < system.positions.dtype.itemsize:  # before neighbours are found, whose images depend on it
        system = moved_by(system, home_shift(system.positions, system.cell, system.pbc))
    neighbors = host_neighbors(system, shells, capacities)
    neighbors = neighbors._replace(offsets=np.zeros((0, 3), np.int32))  # only a rebuild needs them
    system = cast(system, dtype)
    labels = frame.labels
    labels = labels._replace(
        forces=labels.forces.astype(dtype), virial=labels.virial.astype(dtype), weights=labels.weights.astype(dtype)
    )
    return Structure(system, neighbors, labels)
