"""Numbers and labels of a set of frames as arrays; of a mapped set the positions are not touched."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lamjax.data.store import Store
from lamjax.frames import Frame, Joined, Subset

_BLOCK = 1 << 20  # numbers that are held at once


class Facts(NamedTuple):
    """Numbers of every frame; 24 to 40 bytes each."""

    n_atoms: np.ndarray  # (n_frames,)
    energy: np.ndarray  # (n_frames,) eV
    weights: np.ndarray  # (n_frames, 3) of energy, forces, virial


def facts(frames: Sequence[Frame]) -> Facts:
    """Sizes, energies and weights of all frames."""
    match frames:
        case Store():
            return Facts(frames.n_atoms, frames.arrays["energy"], frames.arrays["weights"])
        case Joined():
            return Facts(*map(np.concatenate, zip(*map(facts, frames.parts), strict=True)))
        case Subset():
            return Facts(*(column[frames.rows] for column in facts(frames.frames)))
    return Facts(
        np.array([frame.system.n_atoms for frame in frames], np.int32),
        np.array([float(frame.labels.energy) for frame in frames]),
        np.array([frame.labels.weights for frame in frames], np.float64).reshape(-1, 3),
    )


def composition_blocks(frames: Sequence[Frame], table: np.ndarray, n_types: int) -> Iterator[np.ndarray]:
    """Atoms of each type (n_some_frames, n_types), block after block; `table` maps atomic numbers to types."""
    if isinstance(frames, list):
        yield compositions_of(frames, np.arange(len(frames)), table, n_types)
        return
    step = max(1, _BLOCK // (n_types + 32))
    for start in range(0, len(frames), step):
        yield compositions_of(frames, np.arange(start, min(start + step, len(frames))), table, n_types)


def compositions_of(frames: Sequence[Frame], rows: np.ndarray, table: np.ndarray, n_types: int) -> np.ndarray:
    """Atoms of each type (n_rows, n_types) of the frames with these numbers."""
    match frames:
        case Store():
            return _of_store(frames, rows, table, n_types)
        case Subset():
            return compositions_of(frames.frames, frames.rows[rows], table, n_types)
        case Joined():
            compositions, parts = np.zeros((len(rows), n_types)), np.searchsorted(frames.starts, rows, side="right") - 1
            for k in np.unique(parts):
                own = parts == k
                compositions[own] = compositions_of(frames.parts[k], rows[own] - frames.starts[k], table, n_types)
            return compositions
    counted = [np.bincount(table[frames[k].system.numbers], minlength=n_types + 1)[:n_types] for k in rows]
    return np.array(counted, np.float64).reshape(-1, n_types)


def elements(frames: Sequence[Frame]) -> np.ndarray:
    """(119,) number of frames in which each atomic number occurs."""
    table = np.arange(119)
    return sum((np.sum(block > 0, axis=0) for block in composition_blocks(frames, table, 119)), np.zeros(119, int))


def sample(frames: Sequence[Frame], most: int) -> Sequence[Frame]:
    """At most `most` frames, evenly spread, and one more for each element that these would miss; or all of them.

    The frame that is added for an element is the first that holds it.
    """
    if len(frames) <= most:
        return frames
    rows = np.linspace(0, len(frames) - 1, most).round().astype(np.int64)
    present = elements(Subset(frames, rows)) > 0
    wanted, start, extra = (elements(frames) > 0) & ~present, 0, []
    for block in composition_blocks(frames, np.arange(119), 119) if wanted.any() else ():
        for z in np.flatnonzero(wanted & (block > 0).any(axis=0)):
            extra.append(start + int(np.argmax(block[:, z] > 0)))
            wanted[z] = False
        start += len(block)
    return Subset(frames, np.unique(np.concatenate([rows, np.array(extra, np.int64)])))


def _of_store(store: Store, rows: np.ndarray, table: np.ndarray, n_types: int) -> np.ndarray:
    offsets, rows = store.arrays["offsets"], rows.astype(np.int64)
    n = offsets[rows + 1] - offsets[rows]
    first = np.cumsum(n) - n
    types = table[store.arrays["numbers"][np.repeat(offsets[rows] - first, n) + np.arange(n.sum())]]
    places = np.repeat(np.arange(len(rows)), n) * (n_types + 1) + types
    counted = np.bincount(places, minlength=len(rows) * (n_types + 1))
    return counted.reshape(len(rows), -1)[:, :n_types].astype(np.float64)
