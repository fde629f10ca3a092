"""Shapes for frames or for pairs of structures, planned in one way."""

from collections.abc import Sequence
from typing import Any, cast, overload

from lamjax.data.frame_plan import Plan
from lamjax.data.frame_plan import plan as plan_frames
from lamjax.data.pairs import Pair
from lamjax.data.structure_batches import PairPlan, pair_plan
from lamjax.frames import Frame
from lamjax.neighbors import Shell


@overload
def plan(frames: Sequence[Frame], shells: Sequence[Shell], *options: Any, **named: Any) -> Plan: ...
@overload
def plan(frames: Sequence[Pair], shells: Sequence[Shell], *options: Any, **named: Any) -> PairPlan: ...
def plan(
    frames: Sequence[Frame] | Sequence[Pair],
    shells: Sequence[Shell],
    max_programs: int | None = None,
    structures: float | None = None,
    batch_size: int | str = "auto",
) -> Plan | PairPlan:
    """At most `max_programs` shapes (6 for frames, 3 for pairs) that hold all with little work on padding.

    See `plan_frames` and `pair_plan`; `structures` and `batch_size` are for frames.
    """
    if isinstance(frames, Sequence) and len(frames) and isinstance(frames[0], Pair) and not isinstance(frames, Pair):
        return pair_plan(cast(Sequence[Pair], frames), shells, 3 if max_programs is None else max_programs)
    return plan_frames(
        cast(Sequence[Frame], frames), shells, 6 if max_programs is None else max_programs, structures, batch_size
    )
