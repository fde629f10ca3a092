"""Predictions in files, and how far two sets of predictions of the same structures are apart."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.data
import numpy as np

from lamjax.data import Frame, read
from lamjax.files import replacing
from lamjax.potential import Prediction

# the names of a quantity in an npz file; the first one is lamjax's
_NAMES = {
    "energy": ("energy",),
    "forces": ("forces", "force"),
    "virial": ("virial",),
    "atomic_energies": ("atomic_energies", "atom_energy"),
}
_SHAPES = {"energy": (), "forces": (3,), "virial": (3, 3), "atomic_energies": ()}  # of a frame, or of an atom of it
_PER_ATOM = {"forces", "atomic_energies"}
_NOTHING = 1e-8  # a frame whose largest reference number is below this (eV, eV/Å) has no relative difference


class ParityRow(NamedTuple):
    """One line of a parity table: |predicted - reference| over all components of all compared frames."""

    quantity: str
    unit: str
    n: int  # frames compared
    largest: float
    rms: float
    relative: float | None  # largest ratio to the largest reference component of the same frame; None: all are zero
    where: str  # frame, and atom, of `largest`


def write_predictions(
    path: str | Path,
    frames: Sequence[Frame],
    predicted: Sequence[Prediction],
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Predictions of all frames as one npz, in eV and eV/Å, every digit kept.

    energy (n_frames,), virial (n_frames, 3, 3); forces (n, 3) and atomic_energies (n,) of the atoms of all frames one
    after another; n_atoms (n_frames,) and sources (n_frames,), the file and number of every frame; `more` as it is.
    """
    arrays = {
        name: (np.concatenate if name in _PER_ATOM else np.stack)([getattr(p, name) for p in predicted])
        for name in Prediction._fields
    }
    sources = np.array([frame.source for frame in frames])
    path = path if str(path).endswith(".npz") else f"{path}.npz"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays, n_atoms=_sizes(frames), sources=sources, **(more or {}))


def read_reference(path: str | Path, frames: Sequence[Frame]) -> list[Prediction]:
    """Reference numbers for `frames`, in their order; None for a quantity that the file does not hold.

    An npz file holds what `write_predictions` writes, or the same stacked or flattened by frame, (n_frames, n_atoms, 3)
    or (n_frames, 3 n_atoms); `force` and `atom_energy` are understood. Or it names its frames in `frames` and holds
    `NAME__energy`, `NAME__forces`, `NAME__virial`, `NAME__atom_energy` for each. Any other file is read as labelled
    structures. Nothing in it is executed. Raises ValueError where numbers of frames or atoms are others than those of
    `frames`, and where none of the quantities is there.
    """
    path, sizes = Path(path), _sizes(frames)
    if not (path.suffix == ".npz" or path.is_file() and zipfile.is_zipfile(path)):
        return _labels(path, frames)
    arrays = _arrays(path)
    try:
        references = _by_name(arrays, sizes) if "frames" in arrays else _by_quantity(arrays, sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not any(value is not None for one in references for value in one):
        raise ValueError(
            f"{path} holds none of {', '.join(_NAMES)}. It holds: {', '.join(list(arrays)[:20]) or 'nothing'}."
        )
    return references


def parity_table(
    frames: Sequence[Frame], predicted: Sequence[Prediction], reference: Sequence[Prediction]
) -> list[ParityRow]:
    """Differences in energy (eV, eV/atom), forces (eV/Å), virial and atomic energies (eV), where there is a reference.

    Relative to the largest reference component of the same frame; frames whose reference is zero do not count there.
    """
    units = {"energy": "eV", "forces": "eV/Å", "virial": "eV", "atomic_energies": "eV"}
    rows = []
    for name, unit in units.items():
        pairs = {
            k: (np.asarray(getattr(p, name), np.float64), np.asarray(getattr(r, name), np.float64))
            for k, (p, r) in enumerate(zip(predicted, reference, strict=True))
            if getattr(r, name) is not None
        }
        if pairs:
            rows.append(_differences(name.replace("_", " "), unit, frames, pairs, name in _PER_ATOM))
            if name == "energy":
                sizes = _sizes(frames)
                per_atom = {k: (p / sizes[k], r / sizes[k]) for k, (p, r) in pairs.items()}
                rows.append(_differences("energy per atom", "eV/atom", frames, per_atom, False))
    return rows


def missing(reference: Sequence[Prediction]) -> list[str]:
    """The quantities that no frame of the reference has."""
    return [name.replace("_", " ") for name in _NAMES if all(getattr(one, name) is None for one in reference)]


def _differences(quantity: str, unit: str, frames: Any, pairs: dict, per_atom: bool) -> ParityRow:
    sizes = {k: np.abs(p - r) for k, (p, r) in pairs.items()}
    peaks = {k: d.max() for k, d in sizes.items()}
    ratios = [peaks[k] / np.abs(r).max() for k, (_, r) in pairs.items() if np.abs(r).max() > _NOTHING]
    order = list(peaks)
    worst = order[int(np.argmax([peaks[k] for k in order]))]  # a NaN counts as the largest
    where = frames[worst].source
    if per_atom:
        atom = int(np.argmax(sizes[worst].reshape(len(sizes[worst]), -1).max(axis=1)))
        where += f", atom {atom} ({ase.data.chemical_symbols[int(frames[worst].system.numbers[atom])]})"
    every = np.concatenate([d.ravel() for d in sizes.values()])
    relative = float(np.max(ratios)) if ratios else None
    return ParityRow(
        quantity, unit, len(pairs), float(peaks[worst]), float(np.sqrt(np.mean(every**2))), relative, where
    )


def _sizes(frames: Sequence[Frame]) -> np.ndarray:
    return np.array([frame.system.n_atoms for frame in frames])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, without unpickling anything."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the reference as .npz or as labelled structures.")
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise ValueError(f"{path}: not an npz file of plain arrays, or a damaged one ({error}).") from error


def _by_quantity(arrays: dict, sizes: np.ndarray) -> list[Prediction]:
    if "n_atoms" in arrays:
        _same_sizes(arrays["n_atoms"].ravel(), sizes)
    columns = {name: _column(arrays, aliases, name, sizes) for name, aliases in _NAMES.items()}
    return [Prediction(**{name: column[k] for name, column in columns.items()}) for k in range(len(sizes))]


def _by_name(arrays: dict, sizes: np.ndarray) -> list[Prediction]:
    names = [str(name) for name in arrays["frames"].ravel()]
    _same_number(len(names), sizes)
    return [
        Prediction(
            **{
                name: _column(arrays, [f"{frame}__{alias}" for alias in aliases], name, sizes[k : k + 1])[0]
                for name, aliases in _NAMES.items()
            }
        )
        for k, frame in enumerate(names)
    ]


def _column(arrays: dict, aliases: Sequence[str], quantity: str, sizes: np.ndarray) -> list:
    """The quantity of every frame, or None for every frame if no alias is there."""
    key = next((alias for alias in aliases if alias in arrays), None)
    if key is None:
        return [None] * len(sizes)
    values = arrays[key]
    shape, n_frames, n_atoms = _SHAPES[quantity], len(sizes), int(sizes.sum())
    n_rows = n_atoms if quantity in _PER_ATOM else n_frames
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"{key} holds {values.dtype}, not numbers.")
    if values.shape not in _layouts(quantity, sizes):
        raise ValueError(
            f"{key} has shape {values.shape}, expected {(n_rows, *shape)}: the structures are {n_frames} frames "
            f"with {n_atoms} atoms in all."
        )
    rows = values.reshape(n_rows, *shape)
    return np.split(rows, np.cumsum(sizes)[:-1]) if quantity in _PER_ATOM else list(rows)


def _layouts(quantity: str, sizes: np.ndarray) -> set[tuple[int, ...]]:
    """The shapes in which a quantity may be stored: rows, stacked by frame, flattened by frame; one frame as such."""
    shape, n_frames = _SHAPES[quantity], len(sizes)
    width = int(np.prod(shape))
    if quantity not in _PER_ATOM:
        return {(n_frames, *shape), (n_frames, width), *([shape] if n_frames == 1 else [])}
    stacked = [(n_frames, sizes[0], *shape), (n_frames, sizes[0] * width)] if len(set(sizes.tolist())) == 1 else []
    return {(int(sizes.sum()), *shape), *stacked}


def _labels(path: Path, frames: Sequence[Frame]) -> list[Prediction]:
    """The labels of a file of structures."""
    labelled = read(path)
    sizes = _sizes(frames)
    try:
        _same_number(len(labelled), sizes)
        _same_sizes(_sizes(labelled), sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not any(np.any(f.labels.weights > 0) for f in labelled):
        raise ValueError(f"{path}: no frame carries an energy, forces or a virial to compare with.")
    given = [[v if w > 0 else None for v, w in zip(f.labels[:3], f.labels.weights, strict=True)] for f in labelled]
    return [Prediction(*values, atomic_energies=None) for values in given]


def _same_number(n_found: int, sizes: np.ndarray) -> None:
    if n_found != len(sizes):
        raise ValueError(f"the reference holds {n_found} frames, the structures are {len(sizes)}.")


def _same_sizes(reference_sizes: np.ndarray, sizes: np.ndarray) -> None:
    _same_number(len(reference_sizes), sizes)
    if len(wrong := np.flatnonzero(reference_sizes != sizes)):
        k = wrong[0]
        raise ValueError(
            f"frame {k} of the reference has {reference_sizes[k]} atoms, that of the structures {sizes[k]}."
        )
