"""Largest numbers of neighbours in each frame, counted once and kept beside a packed set."""

import contextlib
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lamjax import files
from lamjax.data.columns import facts
from lamjax.data.store import Store
from lamjax.frames import Frame, Joined, Subset
from lamjax.neighbors import Shell, count
from lamjax.neighbors.types import MULTIPLES
from lamjax.reports import progress
from lamjax.threads import usable_cores

SIDECAR = ".shapes.npz"  # of NAME.h5: NAME.h5.shapes.npz
_BLOCK = 256  # frames that one thread counts before it reports
_QUIET = 20_000  # frames that are counted without a progress line


def exact_shapes(frames: Sequence[Frame], shells: Sequence[Shell]) -> np.ndarray:
    """(n_frames, 1 + n_shells) int32: atoms, then slots for each shell, as `neighbors.plan_capacities` counts them."""
    n_neighbors = counts(frames, tuple(shell.cutoff for shell in shells))
    shapes = np.empty((len(frames), 1 + len(shells)), np.int32)
    shapes[:, 0] = facts(frames).n_atoms
    for k, shell in enumerate(shells):
        wanted = n_neighbors[:, k] if shell.sel is None else np.minimum(n_neighbors[:, k], shell.sel)
        multiple = MULTIPLES[k > 0]
        rounded = np.maximum(multiple, -(-wanted.astype(np.int32) // multiple) * multiple)
        shapes[:, 1 + k] = rounded if k == 0 else np.minimum(rounded, shapes[:, 1])
    return shapes


def counts(frames: Sequence[Frame], cutoffs: tuple[float, ...]) -> np.ndarray:
    """(n_frames, n_cutoffs): the largest number of neighbours of an atom within each cutoff (Å), before any `sel`.

    Of a store they are kept in the file NAME.h5.shapes.npz beside it, if that can be written.
    """
    match frames:
        case Store():
            return _stored(frames, cutoffs)
        case Joined():
            return np.concatenate([counts(part, cutoffs) for part in frames.parts])
        case Subset(frames=Store() | Joined() as whole):
            return counts(whole, cutoffs)[frames.rows]
    return _count(frames, cutoffs)


def _stored(store: Store, cutoffs: tuple[float, ...]) -> np.ndarray:
    """Numbers of neighbours from memory or a file beside the set, else counted and stored there."""
    path = Path(f"{store.path}{SIDECAR}")
    if missing := [c for c in cutoffs if c not in store.counted]:
        store.counted.update(_load(path, store))
        missing = [c for c in cutoffs if c not in store.counted]
    if missing:
        missing.sort(reverse=True)
        store.counted.update(zip(missing, _count(store, tuple(missing)).T, strict=True))
        _save(path, store)
    return np.stack([store.counted[c] for c in cutoffs], axis=1)


def _count(frames: Sequence[Frame], cutoffs: tuple[float, ...]) -> np.ndarray:
    """Numbers of neighbours by neighbour search; the cutoffs may be in any order."""
    order = np.argsort(cutoffs, kind="stable")[::-1]
    shells = tuple(Shell(cutoffs[k]) for k in order)
    n = len(frames)

    def block(start: int) -> np.ndarray:
        rows = range(start, min(start + _BLOCK, n))
        return np.array([count(frames[k].system, shells) for k in rows], np.int32)

    starts = range(0, n, _BLOCK)
    if n <= _BLOCK:
        blocks = list(map(block, starts))
    else:
        with ThreadPoolExecutor(usable_cores()) as pool:
            done = pool.map(block, starts)
            blocks = list(done if n <= _QUIET else progress(done, "Counting neighbours", len(starts)))
    counted = np.empty((n, len(cutoffs)), np.int32)
    counted[:, order] = np.concatenate(blocks) if blocks else np.zeros((0, len(cutoffs)))
    most = counted.max(initial=0)
    return counted.astype(np.uint16) if most < 1 << 16 else counted


def _load(path: Path, store: Store) -> dict[float, np.ndarray]:
    """The counts by cutoff; none if there is no such file, or it is damaged or of another set."""
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            if str(file["digest"]) != store.digest:
                return {}
            columns = {float.fromhex(name): file[name] for name in file.files if name != "digest"}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return {cutoff: column for cutoff, column in columns.items() if column.shape == (len(store),)}


def _save(path: Path, store: Store) -> None:
    """Whole or not at all; a folder that cannot be written is no error, the counts are only found again."""
    with contextlib.suppress(OSError), files.replacing(path) as temporary, open(temporary, "wb") as file:
        columns: dict[str, Any] = {cutoff.hex(): column for cutoff, column in store.counted.items()}
        np.savez(file, digest=store.digest, **columns)
