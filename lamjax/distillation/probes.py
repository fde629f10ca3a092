"""Changes of the teacher's forces along random directions: stored with the labels, and put beside them in batches."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ase
import jax
import numpy as np
from jaxtyping import Array, PyTree

from lamjax.data import Batch, Frame, Packed, batches
from lamjax.losses import Probed, force_change
from lamjax.numerics import compiler_options
from lamjax.potential import Params, Potential

DIRECTION, PRODUCT = "probe", "probe_product"  # arrays of a labelled frame: v without unit, dF/dx v in eV/Å²


def add_probes(
    potential: Potential, params: Params, frames: Sequence[ase.Atoms], packed: Packed, batch_size: int | str
) -> None:
    """Arrays `probe`, v ~ N(0, 1), and `probe_product`, dF/dx v, for every frame that is packed, in place."""
    run = _jitted(potential)
    for atoms in frames:
        rng = np.random.default_rng(np.frombuffer(atoms.positions.tobytes(), np.uint32))  # always the same for it
        atoms.set_array(DIRECTION, rng.normal(size=(len(atoms), 3)), float, (3,))
    directions = [atoms.arrays[DIRECTION] for atoms in frames]
    for batch in batches(packed, batch_size, seed=None, epochs=1):
        products = np.asarray(run(params, batch, _spread(batch, directions)), np.float64)
        for row, mine, k in _places(batch):
            frames[k].set_array(PRODUCT, products[row, mine], float, (3,))


def with_probes(batch: Batch, frames: Sequence[Frame]) -> Probed:
    """The batch with the probes of its frames; 0, which does not count, where a frame has none."""
    directions, products = (_spread(batch, [frame.info.get(name) for frame in frames]) for name in (DIRECTION, PRODUCT))
    return Probed(batch, directions, products)


def _spread(batch: Batch, values: Sequence[np.ndarray | None]) -> np.ndarray:
    """(rows, n_atoms, 3): the values of the frames at the places of their atoms."""
    spread = np.zeros(batch.system.positions.shape, batch.system.positions.dtype)
    for row, mine, k in _places(batch):
        if values[k] is not None:
            spread[row, mine] = values[k]
    return spread


def _places(batch: Batch) -> Iterator[tuple[Any, np.ndarray, int]]:
    """(row, places of its atoms there, frame) of every structure."""
    for row, slot in zip(*np.nonzero(batch.frame >= 0), strict=True):
        mine = (batch.system.structure[row] == slot) & (batch.system.numbers[row] > 0)
        yield row, np.flatnonzero(mine), int(batch.frame[row, slot])


@functools.lru_cache(maxsize=4)
def _jitted(potential: Potential) -> Callable:
    def run(params: PyTree, batch: Any, directions: Array) -> Array:
        return jax.vmap(lambda system, lists, v: force_change(potential, params, system, lists, v))(
            batch.system, batch.neighbors, directions
        )

    return jax.jit(run, compiler_options=compiler_options())
