"""Statistics of the data that a model takes before training: scale of environment matrices, energies of elements.

The rules are DeePMD-kit's (environment statistics over all slots, empty ones too; minimum-norm least squares).
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lamjax.data.columns import composition_blocks, facts, sample
from lamjax.descriptors import Block
from lamjax.descriptors.environment import Switch, raw_rows
from lamjax.frames import Frame, check_frames
from lamjax.neighbors.host import pairs
from lamjax.potential import Params, Potential, check_potential, type_table

MOST = 10_000  # frames that the environment statistics look at
EQUATIONS = 100_000  # of the least squares that are solved as they are
_CHUNK = 1 << 16  # pairs per call of the jitted rows: one shape for all data
ABSENT = 0.1  # standard deviation for an element without data
FLOOR = 1e-2  # smallest standard deviation


class Bias(NamedTuple):
    """Energy per element from least squares."""

    energies: np.ndarray  # (n_types,) eV
    residual: float  # eV, population standard deviation of the residuals of the total energies


def environment_statistics(
    potential: Potential, frames: Iterable[Frame], most: int | None = MOST
) -> dict[str, dict[str, np.ndarray]]:
    """mean and stddev (n_types, 4) of the raw environment rows of each block, per type of the centre.

    All `sel` slots count, empty ones as zeros; the three angular columns are pooled and have mean 0; deviations are at
    least 0.01, and 0.1 for an element without data. The mean is returned even where the model leaves it at zero.
    Of a set of more than `most` frames, so many are taken, evenly spread, and one for each element these would miss.
    """
    check_potential(potential, "environment_statistics")
    if isinstance(frames, Sequence):
        check_frames(frames, "environment_statistics")
    if most is not None and isinstance(frames, Sequence):
        frames = sample(frames, most)
    config = potential.config
    table = type_table(config.elements)
    parts = config.descriptor.blocks
    sums = {part.name: _Sums(len(config.elements)) for part in parts}
    rows = {part.name: _rows_function(part, config.descriptor.env_protection) for part in parts}
    excluded = {tuple(pair) for pair in (*config.descriptor.exclude_types, *config.pair_exclude_types)}
    for group in _groups(frames, parts[0].rcut, table):
        for part in parts:
            centre, d = _block_pairs(group, part, excluded)
            sums[part.name].add(group.counts * part.sel, centre, rows[part.name](d))
    return {name: total.result() for name, total in sums.items()}


def energy_bias(potential: Potential, frames: Sequence[Frame], predicted: np.ndarray | None = None) -> Bias:
    """Minimum-norm least-squares energy per element of the labels, or of label minus `predicted` (n_frames,) eV.

    Raises ValueError if no frame carries an energy.
    """
    check_potential(potential, "energy_bias")
    check_frames(frames, "energy_bias")
    columns = facts(frames)
    use = columns.weights[:, 0] > 0
    if not use.any():
        raise ValueError("No frame carries an energy: the energy per element cannot be fitted. Add energy labels.")
    target = np.asarray(columns.energy, np.float64)
    if predicted is not None:
        target = target - np.asarray(predicted, np.float64)
    equations = functools.partial(_equations, potential, frames, target, use)
    reduced: Any = None
    for counts, energies in equations():
        reduced = _reduced(reduced, counts, energies)
    energies_of_types = np.linalg.lstsq(reduced[:, :-1], reduced[:, -1], rcond=None)[0]
    left = np.concatenate([energies - counts @ energies_of_types for counts, energies in equations()])
    return Bias(energies_of_types, float(np.std(left)))


def compositions(potential: Potential, frames: Sequence[Frame]) -> np.ndarray:
    """Number of atoms of each of the model's elements, (n_frames, n_types)."""
    n = len(potential.config.elements)
    return np.concatenate([np.zeros((0, n)), *composition_blocks(frames, type_table(potential.config.elements), n)])


def _equations(
    potential: Potential, frames: Sequence[Frame], target: np.ndarray, use: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(counts, energies) of the frames in use, block after block."""
    start = 0
    for counts in composition_blocks(frames, type_table(potential.config.elements), len(potential.config.elements)):
        rows = slice(start, start + len(counts))
        yield counts[use[rows]], target[rows][use[rows]]
        start += len(counts)


def _reduced(before: np.ndarray | None, counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Fewer equations with the same least squares: the triangle of a QR decomposition, where there are many."""
    equations = np.concatenate([counts, energies[:, None]], axis=1)
    equations = equations if before is None else np.concatenate([before, equations])
    return np.asarray(np.linalg.qr(equations, mode="r")) if len(equations) > EQUATIONS else equations


def set_environment(potential: Potential, params: Params, frames: Iterable[Frame]) -> Params:
    """The parameters with environment statistics of the frames; the mean stays 0 where the config says so.

    A model whose config gives the standard deviation keeps it, and the frames are not looked at.
    """
    parts = potential.config.descriptor.blocks
    if all(part.stddev is not None for part in parts):
        return params
    computed = environment_statistics(potential, frames)
    descriptor = dict(params.descriptor)
    for part in parts:
        old, new = descriptor[part.name]["statistics"], computed[part.name]
        mean = np.zeros_like(new["mean"]) if part.zero_mean else new["mean"]
        statistics = {
            "mean": jnp.asarray(mean, old["mean"].dtype),
            "stddev": jnp.asarray(new["stddev"], old["stddev"].dtype),
        }
        descriptor[part.name] = {**descriptor[part.name], "statistics": statistics}
    return params._replace(descriptor=descriptor)


def set_bias(
    potential: Potential, params: Params, frames: Sequence[Frame], predicted: np.ndarray | None = None
) -> Params:
    """The parameters with the head's energy per element fitted to the frames.

    With `predicted` (n_frames,) total energies, the present bias is shifted by the fit of label minus prediction.
    """
    _require_head(potential)
    check_frames(frames, "energy_bias")
    head = params.heads[potential.head]
    if "statistics" not in head:
        raise ValueError(
            f"{potential.config} has no energy per element that could be fitted to the labels. Say `bias: keep` (in a "
            "command --bias keep, --replay.bias keep), and give labels whose zero of energy is the potential's."
        )
    bias = energy_bias(potential, frames, predicted)
    old = head["statistics"]
    energies = bias.energies if predicted is None else np.asarray(old["out_bias"], np.float64) + bias.energies
    statistics = {
        **old,
        "out_bias": jnp.asarray(energies, old["out_bias"].dtype),
        "out_std": jnp.full_like(old["out_std"], bias.residual),
    }
    return params._replace(heads={**params.heads, potential.head: {**head, "statistics": statistics}})


def set_parameters(potential: Potential, params: Params, frames: Sequence[Frame]) -> Params:
    """The parameters with mean and inverse standard deviation of the head's frame and atomic parameters, if it has any.

    Deviations are at least 0.01. Raises ValueError for a frame without them.
    """
    _require_head(potential)
    head = params.heads[potential.head]
    config = dict(potential.config.heads)[potential.head]
    statistics = dict(head["statistics"])
    for name, width in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
        if width:
            default = config.default_fparam if name == "fparam" else None
            values = np.concatenate([_parameters(frame, name, width, default) for frame in frames])
            for key, value in (("avg", values.mean(axis=0)), ("inv_std", 1 / np.maximum(values.std(axis=0), FLOOR))):
                statistics[f"{name}_{key}"] = jnp.asarray(value, statistics[f"{name}_{key}"].dtype)
    return params._replace(heads={**params.heads, potential.head: {**head, "statistics": statistics}})


def set_statistics(potential: Potential, params: Params, frames: Sequence[Frame]) -> Params:
    """The parameters of a fresh model with the statistics of the frames: environment, fparam, aparam, energies."""
    params = set_parameters(potential, set_environment(potential, params, frames), frames)
    return set_bias(potential, params, frames)


def _require_head(potential: Potential) -> None:
    if potential.head is None:
        raise ValueError(f"Choose the head that is meant: {', '.join(potential.config.head_names)}.")


def _parameters(frame: Frame, name: str, width: int, default: Any) -> np.ndarray:
    """fparam or aparam of one frame as rows of `width` numbers."""
    value = getattr(frame.system, name)
    value = default if value is None else value
    if value is None or np.shape(value)[-1] != width:
        got = "none" if value is None else np.shape(value)[-1]
        raise ValueError(f"{frame.source}: the head takes {width} numbers {name}, the frame has {got}. Add {name}.npy, "
                         f"or {name} to `info` or `arrays` of the structure.")  # fmt: skip
    return np.reshape(np.asarray(value, np.float64), (-1, width))


class _Group(NamedTuple):
    """All pairs of some frames, with the types at both ends."""

    centre: np.ndarray  # type of the centre
    neighbour: np.ndarray
    slot: np.ndarray  # how many neighbours are nearer
    d: np.ndarray  # (n_pairs, 3) Å
    r: np.ndarray
    counts: np.ndarray  # (n_types,) atoms


def _groups(frames: Iterable[Frame], cutoff: float, table: np.ndarray) -> Iterator[_Group]:
    """The frames' pairs in groups of at least `_CHUNK`, so that few calls are made."""
    pending, size = [], 0
    for frame in frames:
        pending.append(_pairs(frame, cutoff, table))
        size += len(pending[-1].r)
        if size >= _CHUNK:
            yield _join(pending)
            pending, size = [], 0
    if pending:
        yield _join(pending)


def _join(groups: Any) -> _Group:
    joined = [np.concatenate(column) for column in list(zip(*groups, strict=True))[:-1]]
    return _Group(*joined, counts=np.sum([g.counts for g in groups], axis=0))


def _pairs(frame: Frame, cutoff: float, table: np.ndarray) -> _Group:
    system = frame.system
    types = table[system.numbers]
    n_types = int(table[0])
    i, j, images, r = pairs(system, cutoff)
    positions, cell = np.asarray(system.positions, np.float64), np.asarray(system.cell, np.float64)
    starts = np.searchsorted(i, np.arange(system.n_atoms))
    counts = np.bincount(types, minlength=n_types + 1)[:n_types]
    d = positions[j] + images @ cell - positions[i]
    return _Group(types[i], types[j], np.arange(len(i)) - starts[i], d, r, counts)


def _block_pairs(group: _Group, part: Block, excluded: set) -> tuple[np.ndarray, np.ndarray]:
    """Type of the centre and displacement of the pairs that one block sees."""
    keep = (group.r <= part.rcut) & (group.slot < part.sel)
    for a, b in excluded:
        keep &= ~((group.centre == a) & (group.neighbour == b)) & ~((group.centre == b) & (group.neighbour == a))
    return group.centre[keep], group.d[keep]


def _rows_function(part: Block, protection: float) -> Callable:
    @jax.jit
    def rows(d: Array) -> Any:
        return raw_rows(d, Switch(part.rcut, part.rcut_smth, protection, part.exponential))[0]

    def apply(d: np.ndarray) -> np.ndarray:
        """Raw rows of any number of displacements, in chunks of one shape."""
        n_chunks = max(1, -(-len(d) // _CHUNK))
        padded = np.concatenate([d, np.full((n_chunks * _CHUNK - len(d), 3), part.rcut)])
        chunks = [np.asarray(rows(c), np.float64) for c in np.split(padded, n_chunks)]
        return np.concatenate(chunks)[: len(d)]

    return apply


class _Sums:
    """Running counts and moments per type."""

    def __init__(self, n_types: int) -> None:
        self.n_types = n_types
        self.slots = np.zeros(n_types)
        self.moments = np.zeros((4, n_types))  # q, q², a, a²; a pools three columns

    def add(self, slots: Any, centre: Array, rows: Any) -> None:
        self.slots += slots
        q, a = rows[:, 0], rows[:, 1:]
        columns = (q, q * q, a.sum(axis=1), (a * a).sum(axis=1))
        for moment, column in zip(self.moments, columns, strict=True):
            moment += np.bincount(centre, column, minlength=self.n_types)

    def result(self) -> dict[str, np.ndarray]:
        n = np.maximum(self.slots, 1)
        q, q2, a, a2 = self.moments / np.array([n, n, 3 * n, 3 * n])
        std = [np.sqrt(np.maximum(square - mean**2, 0)) for square, mean in ((q2, q), (a2, a))]
        radial, angular = (np.where(self.slots > 0, np.maximum(s, FLOOR), ABSENT) for s in std)
        return {
            "mean": np.stack([q, 0 * q, 0 * q, 0 * q], axis=1),
            "stddev": np.stack([radial, angular, angular, angular], axis=1),
        }
