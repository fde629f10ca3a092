"""DeePMD-kit's npy data sets: folders with type.raw and set.*/coord.npy, read frame by frame from mapped arrays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.data
import numpy as np

from lamjax.data.symbols import ISOTOPES, is_symbol, likely

LABELS = {"energy": "energy", "force": "forces", "virial": "virial"}  # DeePMD's names -> those of this library


class DeepmdSet(NamedTuple):
    """One `set.*` folder: arrays that stay on disk until rows of them are asked for."""

    path: Path
    arrays: dict[str, np.ndarray]  # file stem -> (n_frames, columns)

    @property
    def n_frames(self) -> int:
        return len(self.arrays["coord"])


class DeepmdSystem(Sequence):
    """The frames of one DeePMD system as ASE structures; a frame is read from disk when it is asked for.

    Energy (eV), forces (eV/Å), virial (eV, -dE/dstrain), fparam, charge_spin and aparam are in `info` and `arrays`.
    Virtual atoms (type -1) are left out. `type_elements` are the elements of the types, in their order, where
    type_map.raw has other names (OW, C_1) or is not there; without it `elements` is what the types mean where there is
    no type_map.raw.
    Raises ValueError naming the file, what was found in it, and the remedy.
    """

    def __init__(
        self, path: str | Path, elements: Sequence[str] | None = None, type_elements: Sequence[str] = ()
    ) -> None:
        self.path = Path(path)
        self.types = _types(self.path)
        self.names = _names(self.path, type_elements or elements)
        self.symbols = _symbols(self.path, self.names, type_elements)
        self.periodic = not (self.path / "nopbc").exists()
        folders = sorted(p for p in self.path.glob("set.*") if p.is_dir())
        if not folders:
            raise ValueError(f"{self.path}: there is type.raw but no set.* folder. Put the arrays into set.000/*.npy.")
        self.sets = [_read_set(folder, len(self.types), self.periodic) for folder in folders]

    def __len__(self) -> int:
        return sum(part.n_frames for part in self.sets)

    def __getitem__(self, index: int) -> ase.Atoms:
        index = range(len(self))[index]
        for part in self.sets:
            if index < part.n_frames:
                return self.structure(part, index)
            index -= part.n_frames
        raise IndexError(index)

    def structure(self, part: DeepmdSet, row: int) -> ase.Atoms:
        """The structure of one row of a set."""
        arrays = {name: np.array(array[row], _dtype(name)) for name, array in part.arrays.items()}
        types = arrays.get("real_atom_types", self.types)
        real = types != -1
        n = len(types)
        atoms = ase.Atoms(numbers=self._numbers(types[real], part, row), positions=arrays["coord"].reshape(n, 3)[real])
        if self.periodic:
            atoms.set_cell(arrays["box"].reshape(3, 3))
            atoms.pbc = True
        for name in ("force", "aparam"):
            if name in arrays:
                atoms.arrays[LABELS.get(name, name)] = arrays[name].reshape(n, -1)[real]
        if "energy" in arrays:
            atoms.info["energy"] = float(arrays["energy"][0])
        atoms.info |= {name: arrays[name] for name in ("virial", "fparam", "charge_spin") if name in arrays}
        return atoms

    def _numbers(self, types: np.ndarray, part: DeepmdSet, row: int) -> np.ndarray:
        """Atomic numbers of the types, which must be in the type map."""
        file = part.path / "real_atom_types.npy" if "real_atom_types" in part.arrays else self.path / "type.raw"
        wrong = types[(types < 0) | (types >= len(self.names))]
        if wrong.size:
            raise ValueError(
                f"{file}: type {wrong[0]} (frame {row}) is outside the type map [{', '.join(self.names)}]; expected 0 "
                f"to {len(self.names) - 1}, or -1 for a virtual atom. Repair the types or extend type_map.raw."
            )
        if strange := [self.names[k] for k in np.unique(types) if not is_symbol(self.symbols[k])]:
            guess = [likely(name) for name in self.names]
            raise ValueError(
                f"{file}: atoms are of type {', '.join(map(repr, strange))}, which is no chemical symbol. Say which "
                f"element each type is, in the order of type_map.raw: --elements {','.join(guess)}, in a config "
                f"type_map: [{', '.join(guess)}], in a script options=data.ReadOptions(elements={tuple(guess)})."
            )
        return np.array([ase.data.atomic_numbers.get(symbol, 0) for symbol in self.symbols])[types]


def systems(path: str | Path) -> list[Path]:
    """The DeePMD systems at and below a directory, sorted; ValueError if there is none."""
    paths = sorted(
        Path(folder)
        for folder, folders, files in os.walk(path)
        if "type.raw" in files or any(name.startswith("set.") for name in folders)
    )
    if not paths:
        raise ValueError(
            f"{path}: a directory without a DeePMD data set in it (a folder with type.raw and set.*/coord.npy). "
            "Name the structure files themselves, or the folder that holds the set."
        )
    return paths


def files_of(paths: Iterable[str | Path]) -> list[Path]:
    """The files that reading these paths opens: of a folder the arrays and tables of DeePMD systems, else the path."""
    files: list[Path] = []
    for path in map(Path, paths):
        inside = os.walk(path) if path.is_dir() else ()
        below = (Path(folder) / name for folder, _, names in inside for name in names)
        files += [file for file in below if file.suffix in (".npy", ".raw") or file.name == "nopbc"] or [path]
    return files


def structures(
    path: str | Path, elements: Sequence[str] | None = None, type_elements: Sequence[str] = ()
) -> Iterator[tuple[Path, int, ase.Atoms]]:
    """(set folder, row in it, structure) of every frame of every system at and below a directory."""
    for folder in systems(path):
        system = DeepmdSystem(folder, elements, type_elements)
        for part in system.sets:
            for row in range(part.n_frames):
                yield part.path, row, system.structure(part, row)


def _types(path: Path) -> np.ndarray:
    file = path / "type.raw"
    if not file.is_file():
        raise ValueError(f"{path}: there are set.* folders but no type.raw. Add it: the type of each atom, an integer.")
    try:
        types = np.array([int(word) for word in file.read_text().split()], np.int64)
    except ValueError as error:
        raise ValueError(f"{file}: expected one integer an atom ({error}). Repair the file.") from error
    if types.size == 0:
        raise ValueError(f"{file}: the file is empty. It must hold the type of each atom, an integer.")
    return types


def _names(path: Path, elements: Sequence[str] | None) -> tuple[str, ...]:
    file = path / "type_map.raw"
    if file.is_file():
        return tuple(file.read_text().split())
    if elements is None:
        raise ValueError(
            f"{path}: there is no type_map.raw, so that the types mean nothing. Add it (one element a line, in the "
            "order of the types), or say which model's elements they index."
        )
    return tuple(elements)


def _symbols(path: Path, names: tuple[str, ...], type_elements: Sequence[str]) -> tuple[str, ...]:
    """The chemical symbol of each type where one is known, else its name.

    Deuterium and tritium (D, T) are H if nothing else is. ValueError where what is given does not fit the names.
    """
    if all(map(is_symbol, names)):
        return names
    if not type_elements:
        others = [ISOTOPES.get(name, name) for name in names]
        return tuple(new if others.count(new) == 1 else old for old, new in zip(names, others, strict=True))
    if len(type_elements) != len(names) or any(
        is_symbol(old) and old != new for old, new in zip(names, type_elements, strict=True)
    ):
        raise ValueError(
            f"{path / 'type_map.raw'}: the types are {', '.join(names)}, the elements given for them are "
            f"{', '.join(type_elements)}. Name one for each type, in this order; a type that is called as an element "
            "is that element."
        )
    return tuple(type_elements)


def _read_set(folder: Path, n_atoms: int, periodic: bool) -> DeepmdSet:
    """The mapped arrays of a set folder, all of the same number of rows and of the width that type.raw says."""
    widths = {"coord": 3 * n_atoms, "energy": 1, "force": 3 * n_atoms, "virial": 9, "real_atom_types": n_atoms}
    widths |= {"box": 9} if periodic else {}
    files = {name: folder / f"{name}.npy" for name in (*widths, "fparam", "aparam", "charge_spin")}
    for name in ("coord", "box"):
        if name in files and not files[name].is_file():
            hint = " For molecules add an empty file `nopbc` beside type.raw." if name == "box" else ""
            raise ValueError(f"{folder}: {name}.npy is missing.{hint}")
    arrays = {name: _array(file) for name, file in files.items() if file.is_file()}
    n_frames = len(arrays["coord"])
    for name, array in arrays.items():
        width = widths.get(name, array.shape[1])
        if array.shape != (n_frames, width) or (name == "aparam" and width % n_atoms):
            expected = f"({n_frames}, {widths.get(name, f'a multiple of {n_atoms}')})"
            raise ValueError(
                f"{files[name]}: the array has shape {array.shape}, expected {expected} for the {n_atoms} atoms of "
                f"type.raw and the {n_frames} frames of coord.npy. Repair the file."
            )
    return DeepmdSet(folder, arrays)


def _array(file: Path) -> np.ndarray:
    """A mapped array of numbers with one row a frame."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{file}: not a readable npy array of numbers ({error}). Was the copy cut short? Pickles are refused."
        ) from error
    if array.dtype.kind not in "fiu" or array.ndim == 0 or array.size == 0:
        raise ValueError(f"{file}: holds {array.dtype} of shape {array.shape}; expected numbers, one row a frame.")
    return array.reshape(len(array), -1)


def _dtype(name: str) -> Any:
    return np.int64 if name == "real_atom_types" else np.float64
