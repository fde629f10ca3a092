"""One labelled structure, and sets of them: lists, joined sets, parts of a set."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np

from lamjax.arguments import ArgumentError, describe, expect_all
from lamjax.neighbors import Shell
from lamjax.system import Labels, System

LABELS = ("energy", "forces", "virial")  # in the order of Labels.weights


class Frame(NamedTuple):
    """One structure of a file, on the host (numpy)."""

    system: System
    labels: Labels
    source: str  # "train.extxyz frame 12"
    keys: tuple[str, ...]  # where energy, forces and virial were found, "" where they were not
    info: dict[str, Any]  # other entries of the frame in the file: `atoms.info` and further per-atom arrays


class FrameError(ValueError):
    """A frame that cannot be used, with what the reader made of it: no atoms where it could not be read."""

    def __init__(self, message: str, source: str, atoms: ase.Atoms) -> None:
        super().__init__(message)
        self.source, self.atoms = source, atoms


class Joined(Sequence):
    """Several sets one after another; nothing is copied."""

    def __init__(self, parts: Iterable[Sequence[Frame]]) -> None:
        flat: list[Sequence[Frame]] = []
        for part in parts:
            flat += part.parts if isinstance(part, Joined) else [part]
        self.parts = tuple(part for part in flat if len(part))
        self.starts = np.cumsum([0, *map(len, self.parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return Subset(self, np.arange(len(self))[k])
        k = _checked(k, len(self))
        part = bisect_right(self.starts, k) - 1
        return self.parts[part][k - self.starts[part]]


class Subset(Sequence):
    """The frames of a set with the given numbers, in their order; 4 bytes a frame."""

    def __init__(self, frames: Sequence[Frame], rows: Any) -> None:
        rows = np.asarray(rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(frames)):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} of a set of {len(frames)} frames.")
        self.frames = frames.frames if isinstance(frames, Subset) else frames
        self.rows = (frames.rows[rows] if isinstance(frames, Subset) else rows).astype(np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: Any) -> Any:
        return Subset(self, np.arange(len(self))[k]) if isinstance(k, slice) else self.frames[int(self.rows[k])]


class Names(Sequence):
    """The sources of a set of frames, made when asked."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, k: Any) -> str:
        return source(self.frames, k)


def join(sets: Iterable[Sequence[Frame]]) -> Sequence[Frame]:
    """One set out of several: a list if all are lists, else without copies."""
    sets = list(sets)
    if all(isinstance(one, list) for one in sets):
        return [frame for one in sets for frame in one]
    return sets[0] if len(sets) == 1 else Joined(sets)


def source(frames: Sequence[Frame], k: int) -> str:
    """The source of frame k; of a mapped set its positions are not touched."""
    match frames:
        case Joined():
            k = _checked(k, len(frames))
            part = bisect_right(frames.starts, k) - 1
            return source(frames.parts[part], k - frames.starts[part])
        case Subset():
            return source(frames.frames, int(frames.rows[k]))
        case _ if hasattr(frames, "source"):
            store: Any = frames
            return store.source(k)
    return frames[k].source


def check_frames(frames: Any, function: str) -> None:
    """ArgumentError that says how to get frames, for anything else."""
    expect_all(
        frames,
        Frame,
        f"{function} takes a list of frames",
        "Read them with data.read(path); of an ASE structure data.from_atoms makes one; list(...) takes an iterator.",
    )


def check_shells(shells: Any, function: str) -> None:
    """ArgumentError that says where a potential's shells are, for anything else."""
    what = f"{function} takes the shells of a potential"
    if not shells and isinstance(shells, list | tuple):
        raise ArgumentError(f"{what}, got {describe(shells)}. Give potential.shells.")
    expect_all(shells, Shell, what, "Give potential.shells.")


def _checked(k: int, n: int) -> int:
    k = int(k)
    if not -n <= k < n:
        raise IndexError(f"There is no frame {k} in a set of {n}.")
    return k % n
