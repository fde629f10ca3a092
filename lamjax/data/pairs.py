"""Pairs of a starting structure and where it should relax to, read from files and stacked into batches."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from lamjax import neighbors as neighbor_lists
from lamjax import pytree
from lamjax.data.frames import Frame
from lamjax.data.read import from_atoms, read
from lamjax.neighbors import Neighbors
from lamjax.system import System, pad, to_ase

HEADROOM = 1.25  # slots for neighbours that come closer on the way, relative to what start and target need


class Pair(NamedTuple):
    """One relaxation: the same atoms in the same order and cell, before and after. On the host."""

    start: System
    target: System
    source: str  # where it was read, for messages
    info: dict[str, Any]  # relax_id or pair_id and whatever else the file says


class StructureBatch(NamedTuple):
    """What the structure loss takes: starts, their neighbours, and the positions where they should end."""

    start: System  # (n_batch, ...)
    neighbors: Neighbors
    target: Float[Array, "n_batch n_atoms 3"]  # Å


def read_pairs(paths: str | Path | Iterable[str | Path], dtype=np.float64, fmax: float = 0.1) -> list[Pair]:
    """All pairs of one or more files (extxyz, plain or .gz); see `pairs_from_frames`."""
    return pairs_from_frames(read(paths, dtype), fmax)


def pairs_from_frames(frames: Iterable[Frame], fmax: float = 0.1) -> list[Pair]:
    """Pairs from frames that carry the array `final_positions`, or from trajectories with `relax_id` and `step`.

    Of a trajectory the lowest step is the start and the highest the target. Warns of a target whose forces exceed
    `fmax` (eV/Å): it is not relaxed. Raises ValueError, naming the frames, for a frame that is neither, for a
    trajectory without its first or last step, and for partners that differ in atoms, order or cell, or hold a NaN.
    """
    pairs: list[Pair] = []
    trajectories: dict[str, list[Frame]] = {}
    for frame in frames:
        if "final_positions" in frame.info:
            pairs.append(_from_final_positions(frame))
        elif "relax_id" in frame.info and "step" in frame.info:
            trajectories.setdefault(str(frame.info["relax_id"]), []).append(frame)
        else:
            raise ValueError(
                f"{frame.source}: neither an array `final_positions` nor `relax_id` and `step` in the info: "
                "nothing says where the structure should relax to."
            )
    return pairs + [_from_trajectory(frames, name, fmax) for name, frames in trajectories.items()]


def pair_batches(
    pairs: Sequence[Pair], shells, batch_size: int, seed: int | None = None, n_atoms: int | None = None
) -> Iterator[StructureBatch]:
    """The pairs once, in batches of one shape, shuffled by `seed` (None: in order); the last is filled by empty rows.

    The neighbour arrays have room for what start and target need and a quarter more; `overflow` of the relaxation
    tells if that was too little. Pairs of very different sizes are better sorted into several calls.
    """
    if not pairs:
        raise ValueError("There are no pairs to batch.")
    n_atoms = max(p.start.n_atoms for p in pairs) if n_atoms is None else n_atoms
    capacities = pair_capacities(pairs, shells)
    n_offsets = max(len(neighbor_lists.image_offsets(p.start.cell, p.start.pbc, shells[0].cutoff)) for p in pairs)
    order = np.arange(len(pairs)) if seed is None else np.random.default_rng(seed).permutation(len(pairs))
    for k in range(0, len(order), batch_size):
        rows = [_row(pairs[i], shells, capacities, n_offsets, n_atoms) for i in order[k : k + batch_size]]
        rows += [_empty(rows[0])] * (batch_size - len(rows))
        yield pytree.stack(rows)


def pair_capacities(pairs: Sequence[Pair], shells) -> tuple[int, ...]:
    """Slots for each shell that hold the neighbours of all starts and targets, with headroom for the way between."""
    found = np.array([neighbor_lists.count(s, shells) for p in pairs for s in (p.start, p.target)]).max(axis=0)
    return neighbor_lists.plan_capacities(tuple(int(np.ceil(HEADROOM * f)) for f in found), shells)


def _row(pair: Pair, shells, capacities, n_offsets: int, n_atoms: int) -> StructureBatch:
    start = pad(pair.start, n_atoms)
    return StructureBatch(
        start,
        neighbor_lists.host_neighbors(start, shells, capacities, n_offsets),
        pad(pair.target, n_atoms).positions,
    )


def _empty(row: StructureBatch) -> StructureBatch:
    """A row of the same shapes without atoms."""
    return jax.tree.map(np.zeros_like, row)


def _from_final_positions(frame: Frame) -> Pair:
    final = np.asarray(frame.info["final_positions"], np.float64)
    start = to_ase(frame.system)
    if final.shape != start.positions.shape:
        raise ValueError(
            f"{frame.source}: final_positions have shape {final.shape}, positions {start.positions.shape}."
        )
    start.positions = final
    try:
        target = from_atoms(start, frame.system.positions.dtype).system
    except ValueError as error:
        raise ValueError(f"{frame.source}, final_positions: {error}") from error
    info = {key: value for key, value in frame.info.items() if key != "final_positions"}
    return Pair(frame.system, target, frame.source, info)


def _from_trajectory(frames: list[Frame], name: str, fmax: float) -> Pair:
    frames = sorted(frames, key=lambda frame: int(frame.info["step"]))
    start, target = frames[0], frames[-1]
    where = f"Relaxation {name} ({start.source} to {target.source})"
    _check_complete([int(frame.info["step"]) for frame in frames], target.info, where)
    _check_partners(start.system, target.system, where)
    largest = np.linalg.norm(target.labels.forces, axis=1).max()
    if target.labels.weights[1] > 0 and largest > fmax:
        warnings.warn(
            f"{where}: the last step is not relaxed, its largest force is {largest:.3g} eV/Å (threshold {fmax:g}).",
            stacklevel=3,
        )
    return Pair(start.system, target.system, where, dict(start.info))


def _check_complete(steps: list[int], info: dict, where: str) -> None:
    """Raise ValueError unless the first and the last step are there, once."""
    n_steps = int(info.get("n_steps", steps[-1] + 1))
    if len(set(steps)) < len(steps):
        raise ValueError(f"{where} has a step twice: {steps}. Do two relaxations bear the same relax_id?")
    if len(steps) < 2 or steps[0] != 0 or steps[-1] != n_steps - 1:
        raise ValueError(
            f"{where} holds steps {steps[0]} to {steps[-1]} of {n_steps}: the start (step 0) or its partner, "
            f"the relaxed structure (step {n_steps - 1}), is missing."
        )


def _check_partners(start: System, target: System, where: str) -> None:
    """Raise ValueError unless both hold the same atoms in the same order and cell."""
    if not np.array_equal(start.numbers, target.numbers):
        first, last = (to_ase(s).get_chemical_formula(mode="reduce") for s in (start, target))
        raise ValueError(f"{where}: start {first} and target {last} do not hold the same atoms in the same order.")
    if (start.pbc != target.pbc).any() or not np.allclose(start.cell, target.cell, rtol=0, atol=1e-4):
        raise ValueError(
            f"{where}: the cell changes from {start.cell.tolist()} to {target.cell.tolist()} (or pbc does); "
            "the structure loss relaxes at fixed cell."
        )
