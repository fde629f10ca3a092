"""Objectives of runs, tuples of pure functions. Everything else about a run is the same for all (`engine`)."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax.losses import Loss
from lamjax.neighbors import Neighbors
from lamjax.system import System
from lamjax.training.loops import names_of, summary


class Drawn(NamedTuple):
    """Facts of a batch on the host: its shape, program, numbers of structures and atoms."""

    shape: str = ""  # of its arrays, in words
    program: Hashable = ()  # equal for batches that run the same compiled program
    structures: int = 0  # of this process's share, real ones
    atoms: int = 0  # likewise
    group: str = ""  # the tasks that share the program, where there are several
    tasks: tuple[int, ...] = ()  # number in the run of the task of each slot


Pending = Sequence[tuple[Drawn, Mapping[str, Any]]]  # batches since the last record, with their metrics (numpy)
Measured = dict[str, Any]  # held-out errors by name; values that are not numbers are left out of the tables


class Objective(NamedTuple):
    """A loss, what it is given, and how well a model does; see `objective` for one of a loss and batches alone."""

    loss: Loss  # (params, batch, lr_ratio) -> (scalar, metrics)
    batches: Callable[[int], Iterator[tuple[Drawn, Any]]]  # number of batches done -> those that follow, of numpy
    names: Callable[[Any], list[str]]  # of the structures in a batch, for messages
    summarise: Callable[[Pending, Any], dict[str, float]]  # (batches, params) -> the metrics of them all, as errors
    measure: Callable[..., Measured]  # (params, the first measurement, see `first`; watch) -> held-out errors
    score: Callable[[Measured], float | None]  # the smallest is that of the best model; None: nothing was measured
    first: Measured | None = None  # the measurement before the first step, where the run begins with one
    per_epoch: int | None = None  # updates of an epoch, if its end is an event
    # (records of an epoch) -> the objective with wider arrays, and their shapes in words; None: they are wide enough
    widen: "Callable[[Sequence[Mapping[str, float]]], tuple[Objective, tuple[str, ...]] | None] | None" = None
    fingerprint: dict[str, dict[str, Any]] = {}  # of the data, by set; a resumed run requires the same


def objective(
    loss: Loss,
    batches: Callable[[int], Iterator[Any]],
    *,
    measure: Callable[[Any], Mapping[str, float]] | None = None,
    score: str | None = None,
    sources: Sequence[str] = (),
    fingerprint: Mapping[str, Mapping[str, Any]] | None = None,
) -> Objective:
    """The objective of any loss: `batches(n)` are the batches after the first n, a function of n alone.

    For example `lambda start: data.batches(packed, 8, start=start)`. `measure` gives errors on held-out data, for
    example by `evaluate`; the model with the least `score` among them is the best. `sources[k]` names frame k.
    """

    def drawn_batches(start: int) -> Iterator[tuple[Drawn, Any]]:
        return ((drawn(batch), batch) for batch in batches(start))

    return Objective(
        loss,
        drawn_batches,
        lambda batch: names_of(batch, sources),
        lambda pending, params: summary([metrics for _, metrics in pending]),
        lambda params, first, watch: dict(measure(params)) if measure else {},
        lambda measured: measured.get(score) if score else None,
        fingerprint=dict(fingerprint or {}),
    )


def drawn(batch: Any, processes: int = 1) -> Drawn:
    """Rows, atoms, neighbours and structures of any batch that holds systems; rows are those of all processes."""
    parts = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, System | Neighbors))
    program = (jax.tree.structure(batch), *map(np.shape, jax.tree.leaves(batch)))
    system = next((x for x in parts if isinstance(x, System)), None)
    neighbors = next((x for x in parts if isinstance(x, Neighbors)), None)
    if system is None or neighbors is None:
        return Drawn("", program)
    numbers = np.asarray(system.numbers)
    real = numbers > 0
    place = np.zeros(numbers.shape, int) if system.structure is None else np.asarray(system.structure)
    structures = int(np.sum(np.max(np.where(real, place + 1, 0), axis=-1, initial=0)))
    rows, widths = real[..., 0].size * processes, "/".join(map(str, neighbors.capacities))
    shape = f"{rows} x {numbers.shape[-1]} atoms, {widths} neighbours"
    return Drawn(shape, program, structures, int(np.sum(real)))
