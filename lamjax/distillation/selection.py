"""Which frames are worth a label: those on which a committee of students disagrees, but not beyond all sense."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from numpy.typing import ArrayLike

from lamjax.committee import committee_deviation
from lamjax.data import Packed, batches
from lamjax.distillation.config import LabelConfig, TrustConfig
from lamjax.numerics import compiler_options
from lamjax.potential import Potential

ASKED = "auto:256"  # atoms at a time, when a committee is asked
QUANTILES = (0.5, 0.95, 1.0)


class Selection(NamedTuple):
    """Numbers of the frames that are to be labelled, and how many there are of each kind."""

    train: Int[np.ndarray, " n"]  # to learn from
    fresh: Int[np.ndarray, " m"]  # to measure with
    below: int  # the lower level: known
    within: int
    above: int  # the upper level: not labelled


def deviations(
    potential: Potential, stacked_params: PyTree, packed: Packed, batch_size: int | str
) -> Float[np.ndarray, " n_frames"]:
    """The largest force deviation (eV/Å) in every packed frame; infinite where it is not finite."""
    run = _jitted(potential)
    deviation = np.full(len(packed.sources), np.inf)
    for batch in batches(packed, batch_size, seed=None, epochs=1):
        largest = np.asarray(run(stacked_params, batch), np.float64)
        occupied = batch.frame >= 0
        deviation[batch.frame[occupied]] = largest[occupied]
    return np.where(np.isfinite(deviation), deviation, np.inf)


def select(deviation: ArrayLike, trust: TrustConfig, label: LabelConfig, seed: int) -> Selection:
    """At most `most` frames between the levels, drawn at random, and `fresh` ones of all that are not above the upper.

    The fresh ones are drawn first, so that they are as the frames come and not as uncertain as possible.
    """
    deviation = np.asarray(deviation)
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(deviation < trust.upper)
    fresh = rng.choice(usable, min(label.fresh, len(usable)), replace=False)
    within = usable[deviation[usable] >= trust.lower]
    left = np.setdiff1d(within, fresh)
    train = rng.choice(left, min(label.most, len(left)), replace=False)
    n_above, n_within = len(deviation) - len(usable), len(within)
    return Selection(np.sort(train), np.sort(fresh), len(usable) - n_within, n_within, n_above)


def quantiles(deviation: ArrayLike) -> dict[str, float | None]:
    """Median, 95 % and largest, by name; None for what is infinite."""
    values = np.quantile(np.asarray(deviation), QUANTILES, method="higher")
    return {f"{100 * q:g} %": float(x) if np.isfinite(x) else None for q, x in zip(QUANTILES, values, strict=True)}


@functools.lru_cache(maxsize=4)
def _jitted(potential: Potential) -> Callable:
    def run(stacked: PyTree, batch: Any) -> Array:
        return jax.vmap(lambda system, lists: committee_deviation(potential, stacked, system, lists).largest)(
            batch.system, batch.neighbors
        )

    return jax.jit(run, compiler_options=compiler_options())
