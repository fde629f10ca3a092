"""Shapes of arrays that last: every round has other frames, and programs should not be compiled anew for them."""

from collections.abc import Sequence

import numpy as np
from jax.typing import DTypeLike

from lamjax.data import Bucket, Frame, Packed, Plan, pack, plan
from lamjax.data.counting import exact_shapes
from lamjax.data.frame_plan import choose
from lamjax.neighbors import Shell
from lamjax.shapes import grow


class LastingShapes:
    """Packs sets of frames into one plan of shapes as long as it holds them, and makes a wider one when it does not."""

    def __init__(
        self, shells: Sequence[Shell], max_programs: int, batch_size: int | str, dtype: DTypeLike | None
    ) -> None:
        self.shells, self.max_programs = tuple(shells), max_programs
        self.batch_size, self.dtype = batch_size, np.dtype(dtype)
        self.plan: Plan | None = None

    def pack(self, frames: Sequence[Frame]) -> Packed:
        """The frames in arrays of the lasting shapes."""
        self.cover(frames)
        return pack(frames, self.plan, self.dtype)

    def cover(self, frames: Sequence[Frame]) -> None:
        """Shapes for all of these frames, of which parts will be packed: no part then changes the arrays of another."""
        if self.plan is None or (choose(exact_shapes(frames, self.shells), self.plan) < 0).any():
            planned = plan(frames, self.shells, self.max_programs, batch_size=self.batch_size)
            self.plan = planned._replace(buckets=tuple(self._with_room(bucket) for bucket in planned.buckets))

    def _with_room(self, bucket: Bucket) -> Bucket:
        """The bucket with spare capacity, and at least the capacity that it had before."""
        before = [b.capacities for b in self.plan.buckets if b.n_atoms >= bucket.n_atoms] if self.plan else []
        least = tuple(max(widths) for widths in zip(*before, strict=True)) or (0,) * len(self.shells)
        return bucket._replace(capacities=grow(least, bucket.capacities, self.shells, spare=0.25))
