"""Which structures lie in one row, a list of atoms of fixed width: as many as fit, chosen by their sizes alone."""

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

import numpy as np

from lamjax.arguments import ArgumentError, describe

BLOCK = 1 << 16  # structures that are fitted into rows one by one; larger sets repeat the pattern
LEVEL = 1.03  # rows of about equal content may be so many times more than the fewest


class Bucket(NamedTuple):
    """The structures of one program: their sizes, and neighbour slots for each shell, widest first."""

    n_atoms: int  # of the largest
    capacities: tuple[int, ...]
    least: int = 1  # atoms of the smallest


class RowShape(NamedTuple):
    """The width of one row of a batch."""

    n_atoms: int
    n_structures: int


class Filling(NamedTuple):
    """The batches of a set of structures. Those of about one size may be exchanged, so that every epoch differs."""

    order: np.ndarray  # (n,) structures by falling size
    bounds: np.ndarray  # where the sizes change in that order
    members: np.ndarray  # (n,) places in that order, batch after batch
    starts: np.ndarray  # (n_batches + 1,) where the batches begin in `members`

    @property
    def n_batches(self) -> int:
        return len(self.starts) - 1

    def drawn(self, rng: np.random.Generator | None) -> np.ndarray:
        """Structures (n,), batch after batch; shuffled, or always the same without `rng`."""
        order = self.order
        if rng is not None:
            order = order.copy()
            for a, b in zip(self.bounds, self.bounds[1:], strict=False):
                rng.shuffle(order[a:b])
        return order[self.members]


def wanted_atoms(batch_size: int | str) -> int | None:
    """N of "auto:N" ("auto" is "auto:32"); None for a number of structures. ValueError for what is neither."""
    if isinstance(batch_size, str):
        kind, _, atoms = batch_size.partition(":")
        if kind != "auto" or not (atoms or "32").isdigit() or int(atoms or 32) < 1:
            raise ValueError(f'batch_size must be a number, "auto" or "auto:N", got {batch_size!r}.')
        return int(atoms or 32)
    if not isinstance(batch_size, int | np.integer):
        raise ArgumentError(f'batch_size must be a whole number, "auto" or "auto:N", got {describe(batch_size)}.')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return None


def frames_per_batch(n_atoms: int, batch_size: int | str) -> int:
    """Structures of `n_atoms` atoms in a batch: ceil(N / n_atoms) for "auto:N", as in DeePMD-kit."""
    atoms = wanted_atoms(batch_size)
    return int(batch_size) if atoms is None else math.ceil(atoms / n_atoms)


def row_shape(bucket: Bucket, batch_size: int | str, n_rows: int = 1) -> RowShape:
    """The arrays of a batch that is spread over `n_rows` rows (devices).

    For "auto:N": N atoms and half a structure more, because DeePMD-kit rounds up; the largest structure at least.
    """
    atoms, most, least = wanted_atoms(batch_size), bucket.n_atoms, bucket.least
    if atoms is None:
        each = math.ceil(int(batch_size) / n_rows)
        return RowShape(each * most, each)
    if least == most:
        each = math.ceil(math.ceil(atoms / most) / n_rows)
        return RowShape(each * most, each)
    width = max(most, atoms + (most + least) // 4)
    width = (width + (n_rows - 1) * most) // n_rows  # the fullest row at most, if each structure goes to the emptiest
    return RowShape(width, width // least)


def fill(sizes: np.ndarray, bucket: Bucket, batch_size: int | str) -> Filling:
    """Batches for structures of the given numbers of atoms (n,)."""
    n, whole = len(sizes), np.arange(len(sizes), dtype=np.int32)
    if wanted_atoms(batch_size) is None:
        return Filling(whole, np.array([0, n]), whole, np.append(np.arange(0, n, int(batch_size)), n))
    rounded = np.minimum(_rounded(bucket.n_atoms), bucket.n_atoms)[sizes]
    order = np.argsort(-rounded, kind="stable").astype(np.int32)
    falling = rounded[order]
    places = _places(falling, row_shape(bucket, batch_size).n_atoms)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(falling)) + 1, [n]])
    counts = np.bincount(places)
    starts = np.concatenate([[0], np.cumsum(counts[counts > 0])])
    return Filling(order, bounds, np.argsort(places, kind="stable").astype(np.int32), starts)


def split(sizes: Sequence[int], batch_size: int | str, n_rows: int) -> list[list[int]]:
    """The structures of one batch for each of its rows."""
    if n_rows == 1:
        return [list(range(len(sizes)))]
    if wanted_atoms(batch_size) is None:
        each = math.ceil(int(batch_size) / n_rows)
        return [list(range(len(sizes)))[k * each : (k + 1) * each] for k in range(n_rows)]
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    falling = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    for k, row in zip(falling, _levelled([sizes[k] for k in falling], n_rows)[0], strict=True):
        rows[row].append(k)
    return rows


def _rounded(most: int) -> np.ndarray:
    """Sizes 0 to `most` rounded up by at most a sixteenth: structures of one rounded size take each other's places."""
    sizes = np.arange(most + 1)
    step = 1 << np.maximum(np.floor(np.log2(np.maximum(sizes, 1))).astype(int) - 4, 0)
    return (-(-sizes // step) * step).astype(np.int32)


def _places(falling: np.ndarray, width: int) -> np.ndarray:
    """The batch of every structure (sizes in falling order), none with more than `width` atoms."""
    n_blocks = max(1, math.ceil(len(falling) / BLOCK))
    largest = falling[::n_blocks].tolist()  # of so many neighbours in the order, one for each block
    rows, n = _tight(largest, width)
    levelled, fullest = _levelled(largest, min(round(LEVEL * n), len(largest)))
    if fullest <= width:
        rows, n = levelled, max(levelled) + 1
    place, block = np.divmod(np.arange(len(falling)), n_blocks)
    return np.array(rows)[place] + n * block


def _tight(falling: list[int], width: int) -> tuple[list[int], int]:
    """Few rows: each structure into the fullest row that still has room. The row of each, and how many there are."""
    room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the atoms that still fit
    some, rows, n = 0, [], 0  # `some` has a bit for each room that is not empty
    for size in falling:
        fits = some >> size
        if fits:
            left = size + (fits & -fits).bit_length() - 1
            row = room[left].pop()
            some ^= 0 if room[left] else 1 << left
        else:
            left, row, n = width, n, n + 1
        rows.append(row)
        room[left - size].append(row)
        some |= 1 << (left - size)
    return rows, n


def _levelled(falling: Sequence[int], n: int) -> tuple[list[int], int]:
    """Rows of about equal content: each structure into the emptiest of n. The row of each, and the most atoms."""
    heap = [(0, row) for row in range(n)]
    heapify(heap)
    rows = []
    for size in falling:
        atoms, row = heap[0]
        rows.append(row)
        heapreplace(heap, (atoms + size, row))
    return rows, max(heap)[0]
