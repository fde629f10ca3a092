"""Arrays that grow: wide enough for what was found and a little more, in steps, so that few programs are compiled."""

import math
from collections.abc import Sequence
from typing import Any

from lamjax.neighbors.types import Shell, round_up, slots


def grow(
    capacities: tuple[int, ...], n_neighbors: Any, shells: Sequence[Shell], spare: float = 0.15
) -> tuple[int, ...]:
    """Slots for each shell: what was found and `spare` more, in eights, never fewer than before, `sel` at most."""
    wanted = [round_up(math.ceil((1 + spare) * int(f)), 8) for f in n_neighbors]
    limited = slots(w if s.sel is None else min(w, s.sel) for w, s in zip(wanted, shells, strict=True))
    grown = [max(old, new) for old, new in zip(capacities, limited, strict=True)]
    return tuple(min(width, grown[0]) for width in grown)
