"""Structures and labels from files that ASE reads and DeePMD folders, checked once; errors name file and frame."""

import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import ase
import ase.data
import ase.io
import numpy as np

from lamjax import units
from lamjax.data import deepmd
from lamjax.data.columns import elements as present_elements
from lamjax.data.columns import facts
from lamjax.data.frames import LABELS, Frame, FrameError, Joined, join
from lamjax.data.store import Store, is_store
from lamjax.neighbors.host import pairs
from lamjax.system import Labels, System, fixed_components, host_system, other_constraints

CLOSEST = 1e-3  # Å; atoms nearer than this are two atoms on one place
NEAR = 1.0  # Å; who is looked at: a search within less takes longer
_OWN_ARRAYS = {"positions", "numbers", "forces", "force", "REF_forces"}


class Summary(NamedTuple):
    """What a list of frames holds, as plain data for a table."""

    n_frames: int
    labelled: dict[str, int]  # frames that carry energy, forces, virial
    keys: dict[str, int]  # "energy: REF_energy" -> frames
    elements: dict[str, int]  # frames in which each element occurs
    n_atoms: tuple[int, float, int]  # smallest, median, largest structure
    periodic: int  # frames periodic in all three directions


def read(
    paths: str | Path | Iterable[str | Path],
    dtype=np.float64,
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
) -> list[Frame]:
    """All frames of one or more files: extxyz (plain or .gz), whatever else `ase.io.read` knows, DeePMD's npy folders.

    Also a store that `write_store` made; `open_frames` opens it without reading it.
    A directory is a DeePMD system (type.raw, set.*/coord.npy) or holds such systems at any depth.
    Labels are looked for as REF_energy / REF_forces / REF_stress / REF_virial first, then among ASE's results (forces
    without constraints), then in `info` and `arrays`. A virial (-V stress, eV) counts only in a fully periodic cell.
    `elements` is the model's type map, `require` names labels that every frame must have.
    Raises FileNotFoundError and ValueError that name file, frame and remedy.
    """
    return list(iterate(paths, dtype, elements, require))


def iterate(
    paths: str | Path | Iterable[str | Path],
    dtype=np.float64,
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
    on_error: Callable[[ValueError], None] | None = None,
) -> Iterator[Frame]:
    """As `read`, one frame after another: nothing but the present frame is held in memory.

    With `on_error`, a frame that cannot be used is told to it and left out, instead of raised.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    known = None if elements is None else tuple(elements)
    require = _known_labels(require)
    for path in map(Path, paths):
        if is_store(path):
            yield from (_as_type(frame, dtype) for frame in _checked_store(path, known, require))
        else:
            yield from _parsed(path, dtype, known, require, on_error)


def open_frames(
    paths: str | Path | Iterable[str | Path],
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
) -> Sequence[Frame]:
    """As `read`, but stores stay on the disk: their frames are mapped, in the precision in which they were written.

    A list for ordinary files, a `Store` for a single store, a `Joined` sequence for several of either kind.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    known = None if elements is None else tuple(elements)
    require = _known_labels(require)
    return join(
        _checked_store(path, known, require) if is_store(path) else read(path, elements=known, require=require)
        for path in paths
    )


def _parsed(
    path: Path, dtype, known: tuple[str, ...] | None, require: tuple[str, ...], on_error=None
) -> Iterator[Frame]:
    """The frames of a file or folder that is not mapped."""
    found = deepmd.structures(path, known) if path.is_dir() else _file(path)
    for place, number, atoms in found:
        source = f"{place.relative_to(path.parent)} frame {number}"
        try:
            frame = from_atoms(atoms, dtype, source)
            _check_known(atoms.symbols, known)
            _check_labels(atoms, frame, require)
        except ValueError as error:
            named = FrameError(f"{place}, frame {number}: {error}", source, atoms)
            if on_error is None:
                raise named from error
            on_error(named)
            continue
        yield frame


def summarize(frames: Sequence[Frame]) -> Summary:
    """Counts of labels, keys, elements and sizes over the frames; of a store without reading positions."""
    frames = frames if isinstance(frames, Sequence) else list(frames)
    said, present = facts(frames), present_elements(frames)
    sizes = said.n_atoms if len(frames) else np.zeros(1, int)
    labelled = np.sum(said.weights > 0, axis=0)
    keys, periodic = Counter(), 0
    for part in frames.parts if isinstance(frames, Joined) else [frames]:
        keys += _keys(part)
        periodic += _periodic(part)
    return Summary(
        n_frames=len(frames),
        labelled={name: int(n) for name, n in zip(LABELS, labelled, strict=True)},
        keys=dict(keys),
        elements={ase.data.chemical_symbols[z]: int(present[z]) for z in np.flatnonzero(present) if z > 0},
        n_atoms=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        periodic=periodic,
    )


def _keys(frames: Sequence[Frame]) -> Counter:
    """ "energy: REF_energy" -> frames."""
    if isinstance(frames, Store):
        numbers = enumerate(np.bincount(frames.arrays["key"], minlength=len(frames.keys)).tolist())
        triples = Counter({tuple(frames.keys[k]): n for k, n in numbers})
    else:
        triples = Counter(frame.keys for frame in frames)
    found: Counter = Counter()
    for triple, n in triples.items():
        found.update({f"{name}: {key}": n for name, key in zip(LABELS, triple, strict=True) if key})
    return found


def _periodic(frames: Sequence[Frame]) -> int:
    """Frames that are periodic in all three directions."""
    if isinstance(frames, Store):
        return int(np.sum(frames.arrays["pbc"].all(axis=1)))
    return sum(bool(frame.system.pbc.all()) for frame in frames)


def from_atoms(atoms: ase.Atoms, dtype=np.float64, source: str = "structure") -> Frame:
    """The frame of one ASE structure with whatever labels it carries; ValueError if it cannot be used."""
    system = host_system(atoms, dtype)
    _check_distances(system)
    found = (_find(atoms, "energy"), _find(atoms, "forces"), _find_virial(atoms))
    energy, forces, virial = (value for value, _ in found)
    weights = np.array([value is not None for value, _ in found], dtype)
    labels = Labels(
        energy=np.asarray(_checked(energy, (), "energy"), np.float64),
        forces=np.asarray(_checked(forces, (len(atoms), 3), "forces"), dtype),
        virial=np.asarray(_checked(virial, (3, 3), "virial"), dtype),
        weights=weights,
    )
    arrays = {k: v for k, v in atoms.arrays.items() if k not in _OWN_ARRAYS}
    info = {**atoms.info, **arrays, **_constraints(atoms)}
    return Frame(system, labels, source, tuple(key for _, key in found), info)


def _constraints(atoms: ase.Atoms) -> dict:
    """`fixed` (n_atoms, 3) and the kinds of `other_constraints`, each only where there are some."""
    fixed, others = fixed_components(atoms), ", ".join(other_constraints(atoms))
    return ({"fixed": fixed} if fixed.any() else {}) | ({"other_constraints": others} if others else {})


def _known_labels(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    if unknown := set(names) - set(LABELS):
        raise ValueError(f"Unknown label {', '.join(sorted(unknown))} required; labels are {', '.join(LABELS)}.")
    return names


def _checked_store(path: str | Path, known: tuple[str, ...] | None, require: tuple[str, ...]) -> Store:
    """The store after the checks of `read`, from the arrays of numbers and weights alone."""
    store = Store(path)
    if known is not None:
        numbers = store.arrays["numbers"]
        allowed = np.isin(np.arange(256), [ase.data.atomic_numbers[name] for name in known])
        for start in range(0, len(numbers), 1 << 24):
            if (foreign := np.flatnonzero(~allowed[numbers[start : start + (1 << 24)]])).size:
                k = store.frame_of_atom(start + int(foreign[0]))
                try:
                    _check_known([ase.data.chemical_symbols[z] for z in store[k].system.numbers], known)
                except ValueError as error:
                    raise ValueError(f"{path}, frame {k} ({store.source(k)}): {error}") from None
    for name in require:
        missing = np.flatnonzero(store.arrays["weights"][:, LABELS.index(name)] == 0)
        if missing.size:
            k = int(missing[0])
            raise ValueError(
                f"{path}, frame {k} ({store.source(k)}): the frame has no {name} label, nor have "
                f"{missing.size - 1} others. Convert files that carry it, or leave these frames out."
            )
    return store


def _as_type(frame: Frame, dtype) -> Frame:
    """The frame with positions, cell, forces, virial, weights and parameters in `dtype`."""

    def cast(x):
        return x.astype(dtype) if x is not None and x.dtype.kind == "f" and x.dtype != dtype else x

    labels = frame.labels
    return frame._replace(system=System(*map(cast, frame.system)), labels=Labels(labels.energy, *map(cast, labels[1:])))


def _file(path: Path) -> Iterator[tuple[Path, int, ase.Atoms]]:
    """(file, number, structure) of all its structures, with one kind of error for everything that can be wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a structure file, for example extxyz, or a DeePMD folder.")
    number = 0
    try:
        for atoms in _parse(path):
            yield path, number, atoms
            number += 1
    except GeneratorExit:
        raise
    except Exception as error:  # every reader of ASE has its own exceptions
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty. Was the copy cut short?") from error
        raise ValueError(
            f"{path}, frame {number}: not readable as a structure file ({type(error).__name__}: {error}). "
            "Expected extxyz, plain or .gz, or another format that ase.io.read knows."
        ) from error
    if number == 0:
        raise ValueError(f"{path}: the file is empty: no structure in it. Was the copy cut short?")


def _parse(path: Path) -> Iterator[ase.Atoms]:
    """ASE's reader; compressed extxyz is unpacked first, because ASE seeks to every frame, which unpacks it again."""
    if not path.name.endswith((".extxyz.gz", ".xyz.gz")):
        yield from ase.io.iread(path, ":")
        return
    with gzip.open(path, "rt") as file:
        content = io.StringIO(file.read())
    yield from ase.io.iread(content, ":", format="extxyz")


def _find(atoms: ase.Atoms, name: str):
    """A label and the key it was found under: (None, "") if nowhere."""
    stored = {**atoms.arrays, **atoms.info}
    if (key := f"REF_{name}") in stored:
        return stored[key], key
    results = getattr(atoms.calc, "results", {})  # what is stored; never a new calculation
    if results.get(name) is not None:
        return (atoms.get_forces(apply_constraint=False) if name == "forces" else results[name]), name
    return (stored[name], name) if name in stored else (None, "")


def _find_virial(atoms: ase.Atoms):
    """The virial in eV, given as such or as a stress; only in a fully periodic cell."""
    if not atoms.pbc.all():
        return None, ""
    found = {name: _find(atoms, name) for name in ("virial", "stress")}
    for name in sorted(found, key=lambda name: not found[name][1].startswith("REF_")):
        value, key = found[name]
        if value is not None:
            tensor = _tensor(value, key)
            return (tensor if name == "virial" else units.stress_to_virial(tensor, atoms.cell.volume)), key
    return None, ""


def _tensor(value, key: str) -> np.ndarray:
    """A (3, 3) tensor from (3, 3), nine or six (Voigt xx yy zz yz xz xy) numbers."""
    value = np.asarray(value, np.float64)
    if value.shape == (6,):
        return units.from_voigt(value)
    if value.shape in ((9,), (3, 3)):
        return value.reshape(3, 3)
    raise ValueError(f"{key} has shape {value.shape}; expected (3, 3), 9 numbers, or 6 (xx yy zz yz xz xy).")


def _checked(value, shape: tuple[int, ...], name: str):
    """The label as a finite array of its shape; zeros where it is missing."""
    if value is None:
        return np.zeros(shape)
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"The {name} label is not a number: {value!r}. Repair or remove the frame.") from None
    if value.shape != shape:
        raise ValueError(f"The {name} label has shape {value.shape}, expected {shape}. Repair or remove the frame.")
    if not np.isfinite(value).all():
        raise ValueError(f"The {name} label holds a value that is not finite (NaN or infinity). Remove the frame.")
    return value


def _check_distances(system: System) -> None:
    """ValueError if two atoms (of different index; a cell cannot be that short) share a place."""
    i, j, _, r = pairs(system, NEAR)
    r = np.where(i == j, np.inf, r)
    if (closest := r.min(initial=np.inf)) < CLOSEST:
        k = int(np.argmin(r))
        raise ValueError(
            f"Atoms {i[k]} and {j[k]} are {closest:.2g} Å apart: two atoms on one place. "
            "Remove one of them or the frame."
        )


def _check_known(symbols: Iterable[str], known: tuple[str, ...] | None) -> None:
    if known is not None and (foreign := sorted(set(symbols) - set(known))):
        raise ValueError(
            f"element {', '.join(foreign)} is not in the model's type map [{', '.join(known)}]. "
            "Use a model that knows it, extend the type map, or remove the frame."
        )


def _check_labels(atoms: ase.Atoms, frame: Frame, require: tuple[str, ...]) -> None:
    missing = [name for name in require if frame.labels.weights[LABELS.index(name)] == 0]
    if missing:
        stored = sorted({*atoms.info, *atoms.arrays, *getattr(atoms.calc, "results", {})} - {"numbers", "positions"})
        hint = "" if "virial" not in missing or atoms.pbc.all() else " (a virial needs pbc in all three directions)"
        raise ValueError(
            f"the frame has no {', no '.join(missing)} label{hint}. Looked for REF_<label>, ASE's results and <label>; "
            f"the frame holds: {', '.join(stored) or 'nothing'}. Rename the key or remove the frame."
        )
