"""Names for sets of frames: with another number, position, label, weight or order, a set has another name."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lamjax.data.pairs import Pair
from lamjax.data.store import Store
from lamjax.frames import Frame, Joined, Subset

_ATOMS = 1 << 20  # of a mapped set that are looked at at once
_OF_ATOMS, _OF_FRAMES = ("numbers", "positions", "forces", "aparam"), ("cell", "pbc", "energy", "virial", "fparam")
_PARTS = {
    "structures": ("n_atoms", "numbers", "positions", "cell", "pbc", "fparam", "aparam"),
    "energies": ("energy", "energy weights"),
    "forces": ("n_atoms", "forces", "forces weights"),
    "virials": ("virial", "virial weights"),
}


def digests(frames: Sequence[Frame]) -> dict[str, str]:
    """Names of the structures, energies, forces and virials (with their weights) of frames, in their order.

    All numbers are looked at, as they are in memory or on the disk: about a second for a gigabyte of a mapped set. How
    a set is divided into files, or into parts of a sequence, does not matter.
    """
    columns: dict[str, _Column] = {}
    for block in _blocks(frames, np.arange(len(frames))):
        for name, values in block.items():
            columns.setdefault(name, _Column()).add(values)
    return {part: _joined(columns[name].name for name in names if name in columns) for part, names in _PARTS.items()}


def pair_digests(pairs: Sequence[Pair]) -> dict[str, str]:
    """Names of the starts, targets, labels and fixed components of pairs, in their order."""
    starts, targets = (
        digests([Frame(getattr(pair, which), pair.labels, "", (), {}) for pair in pairs])
        for which in ("start", "target")
    )
    fixed = _Column()
    for pair in pairs:
        fixed.add(pair.fixed)
    labels = _joined(value for part, value in targets.items() if part != "structures")
    return {"starts": starts["structures"], "targets": targets["structures"], "labels": labels, "fixed": fixed.name}


class _Column:
    """The numbers of one kind, however they are cut into arrays."""

    def __init__(self) -> None:
        self.hash, self.form = hashlib.blake2b(digest_size=12), None

    def add(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        if values.dtype.kind in "iub":
            values = values.astype("<i4")  # a store has them in bytes
        if (form := f"{values.dtype.str}{values.shape[1:]}") != self.form:
            self.form = form
            self.hash.update(form.encode())
        self.hash.update(values.reshape(-1).view(np.uint8).data)

    @property
    def name(self) -> str:
        return self.hash.hexdigest()


def _joined(names: Iterable[str]) -> str:
    return hashlib.blake2b(" ".join(names).encode(), digest_size=12).hexdigest()


def _blocks(frames: Sequence[Frame], rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Arrays of the frames with these numbers, block after block."""
    match frames:
        case Store():
            yield from _of_store(frames, rows)
        case Subset():
            yield from _blocks(frames.frames, frames.rows[rows])
        case Joined():
            parts = np.searchsorted(frames.starts, rows, side="right") - 1
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1) if len(rows) else ():
                part = int(parts[run[0]])
                yield from _blocks(frames.parts[part], rows[run] - frames.starts[part])
        case _:
            yield from (_of_frame(frames[int(k)]) for k in rows)


def _of_frame(frame: Frame) -> dict[str, np.ndarray]:
    system, labels = frame.system, frame.labels
    whole = {**system._asdict(), **labels._asdict()}
    arrays = {name: whole[name] for name in _OF_ATOMS if whole[name] is not None}
    arrays |= {name: np.asarray(whole[name])[None] for name in _OF_FRAMES if whole[name] is not None}
    weights = {f"{name} weights": labels.weights[k : k + 1] for k, name in enumerate(("energy", "forces", "virial"))}
    return arrays | weights | {"n_atoms": np.array([system.n_atoms])}


def _of_store(store: Store, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Whole stretches of the mapped arrays where the rows follow one another."""
    arrays, offsets = store.arrays, store.arrays["offsets"]
    step = max(1, _ATOMS * len(store) // max(1, store.atoms_total))
    for start in range(0, len(rows), step):
        some = rows[start : start + step].astype(np.int64)
        first, last, n = offsets[some], offsets[some + 1], offsets[some + 1] - offsets[some]
        if np.all(np.diff(some) == 1):
            atoms, some = slice(int(first[0]), int(last[-1])), slice(int(some[0]), int(some[-1]) + 1)
        else:
            atoms = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
        stretch = {name: arrays[name][atoms] for name in _OF_ATOMS if name in arrays}
        stretch |= {name: arrays[name][some] for name in _OF_FRAMES if name in arrays}
        weights = arrays["weights"][some].T
        stretch |= {f"{name} weights": weights[k] for k, name in enumerate(("energy", "forces", "virial"))}
        yield stretch | {"n_atoms": n}
