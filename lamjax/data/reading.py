"""Structures and labels from files that ASE reads and DeePMD folders, checked once; errors name file and frame."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.data
import numpy as np
from jax.typing import DTypeLike

from lamjax.arguments import ArgumentError, expect
from lamjax.data import deepmd, formats
from lamjax.data.atoms import Remark, Remarks, frame_of, held
from lamjax.data.atoms import from_atoms as from_atoms
from lamjax.data.columns import elements as present_elements
from lamjax.data.columns import facts
from lamjax.data.labels import ReadOptions, named
from lamjax.data.store import Store, is_store
from lamjax.frames import LABELS, Frame, FrameError, Joined, check_frames, join
from lamjax.system import Labels, cast

_DEFAULT = ReadOptions()


class Summary(NamedTuple):
    """Numbers of frames, atoms, elements and labels of a list of frames, as plain data for a table."""

    n_frames: int
    labelled: dict[str, int]  # frames that carry energy, forces, virial
    keys: dict[str, int]  # "energy: REF_energy" -> frames
    elements: dict[str, int]  # frames in which each element occurs
    n_atoms: tuple[int, float, int]  # smallest, median, largest structure
    periodic: int  # frames periodic in all three directions


def read(
    paths: str | Path | Iterable[str | Path],
    dtype: DTypeLike | None = np.float64,
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
    options: ReadOptions = _DEFAULT,
) -> list[Frame]:
    """All frames of one or more files: extxyz, whatever else `ase.io.read` knows, packed or not, DeePMD's npy folders.

    Also a store that `write_store` made; `open_frames` opens it without reading it.
    A directory is a DeePMD system (type.raw, set.*/coord.npy) or holds such systems at any depth.
    Labels are looked for as REF_energy / REF_forces / REF_stress / REF_virial first, then as dft_energy and the like,
    among ASE's results (forces without constraints), then in `info` and `arrays`, in whatever case; `options` name
    others. What looks like a label and is not taken is named in a warning. A virial (-V stress, eV) counts only in a
    fully periodic cell. Of VASP's files, ionic steps that are not converged are left out, with a warning.
    `elements` is the model's type map, `require` names labels that every frame must have.
    Raises FileNotFoundError and ValueError that name file, frame and remedy.
    """
    return list(iterate(paths, dtype, elements, require, options=options))


def iterate(
    paths: str | Path | Iterable[str | Path],
    dtype: DTypeLike | None = np.float64,
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
    on_error: Callable[[ValueError], None] | None = None,
    options: ReadOptions = _DEFAULT,
    on_remark: Callable[[Remark], None] | None = None,
) -> Iterator[Frame]:
    """As `read`, one frame after another: nothing but the present frame is held in memory.

    `on_error`, where it is given, is called with the error of each frame that cannot be used, which is left out, and
    `on_remark` with the remarks on each file at its end; without it those of severity "warning" are warnings.
    """
    paths = _paths(paths)
    known = _known_elements(elements, options)
    require = _known_labels(require)
    for path in map(Path, paths):
        if is_store(path):
            yield from (_as_type(frame, dtype) for frame in _checked_store(path, known, require, options))
            continue
        remarks = Remarks(path)
        yield from _parsed(path, dtype, (known, require), options, remarks, on_error)
        for remark in remarks.all():
            if on_remark is not None:
                on_remark(remark)
            elif remark.severity == "warning":
                warnings.warn(str(remark), stacklevel=2)


def open_frames(
    paths: str | Path | Iterable[str | Path],
    elements: Iterable[str] | None = None,
    require: Iterable[str] = (),
    options: ReadOptions = _DEFAULT,
) -> Sequence[Frame]:
    """As `read`, but stores stay on the disk: their frames are mapped, in the precision in which they were written.

    A list for ordinary files, a `Store` for a single store, a `Joined` sequence for several of either kind.
    """
    paths = _paths(paths)
    known = _known_elements(elements, options)
    require = _known_labels(require)
    return join(
        _checked_store(path, known, require, options)
        if is_store(path)
        else read(path, elements=known, require=require, options=options)
        for path in paths
    )


def _parsed(
    path: Path,
    dtype: DTypeLike | None,
    required: tuple[tuple[str, ...] | None, tuple[str, ...]],
    options: Any,
    remarks: Remarks,
    on_error: Any,
) -> Iterator[Frame]:
    """The frames of a file or folder that is not mapped, of `required` elements and labels."""
    known, labels = required
    structures = deepmd.structures(path, known, options.elements) if path.is_dir() else _file(path, options, remarks)
    lacking, others = options.keys(), set()
    for place, number, one in structures:
        source = f"{place.relative_to(path.parent)} frame {number}"
        atoms = ase.Atoms() if isinstance(one, ValueError) else one
        try:
            if isinstance(one, ValueError):
                raise one
            frame = frame_of(atoms, dtype, source, options, remarks)
            _check_known(atoms.symbols, known)
            _check_labels(atoms, frame, labels)
        except ValueError as error:
            frame_error = FrameError(f"{place}, frame {number}: {error}", source, atoms)
            if on_error is None:
                raise frame_error from error
            on_error(frame_error)
            continue
        if lacking:
            present = held(atoms)
            lacking = {name: key for name, key in lacking.items() if not named(present, key)}
            others |= present
        yield frame
    if lacking and others:
        name, key = next(iter(lacking.items()))
        raise ValueError(
            f"{path}: no frame has the key {key!r} that was given for the {name}. The frames have: "
            f"{', '.join(sorted(others)) or 'none'}. Give one of these, or read files with other keys apart."
        )


def summarize(frames: Sequence[Frame]) -> Summary:
    """Counts of labels, keys, elements and sizes over the frames; of a store without reading positions."""
    frames = frames if isinstance(frames, Sequence) else list(frames)
    check_frames(frames, "summarize")
    columns, present = facts(frames), present_elements(frames)
    sizes = columns.n_atoms if len(frames) else np.zeros(1, int)
    labelled = np.sum(columns.weights > 0, axis=0)
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
    counter: Counter = Counter()
    for triple, n in triples.items():
        counter.update({f"{name}: {key}": n for name, key in zip(LABELS, triple, strict=True) if key})
    return counter


def _periodic(frames: Sequence[Frame]) -> int:
    """Frames that are periodic in all three directions."""
    if isinstance(frames, Store):
        return int(np.sum(frames.arrays["pbc"].all(axis=1)))
    return sum(bool(frame.system.pbc.all()) for frame in frames)


def _paths(paths: Any) -> list[str | Path]:
    """One or more files as a list; ArgumentError for what is no name of a file."""
    paths = [paths] if isinstance(paths, str | Path) or not isinstance(paths, Iterable) else list(paths)
    for path in paths:
        remedy = "An ASE structure becomes a frame with data.from_atoms."
        expect(path, (str, Path), "Files are given by their names", remedy)
    return paths


def _known_elements(elements: Iterable[str] | None, options: ReadOptions) -> tuple[str, ...] | None:
    """The elements as a tuple; ArgumentError for a text, and for options that are none."""
    expect(options, ReadOptions, "read takes ReadOptions", "Write data.ReadOptions(energy_key='my_energy').")
    if isinstance(elements, str):
        raise ArgumentError(f"elements is the text {elements!r}. Give a list of names: elements=['Si', 'O'].")
    return None if elements is None else tuple(elements)


def _known_labels(names: Iterable[str]) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names)
    if unknown := set(names) - set(LABELS):
        raise ValueError(f"Unknown label {', '.join(sorted(unknown))} required; labels are {', '.join(LABELS)}.")
    return names


def _checked_store(
    path: str | Path, known: tuple[str, ...] | None, require: tuple[str, ...], options: ReadOptions
) -> Store:
    """The store after the checks of `read`, from the arrays of numbers and weights alone."""
    store = Store(path)
    written = {key for keys in store.keys for key in keys}
    if foreign := [key for key in options.keys().values() if key not in written]:
        raise ValueError(
            f"{path}: the key {foreign[0]!r} was asked for, but a store keeps the labels that were chosen when it was "
            f"written ({', '.join(sorted(written - {''}))}). Give the key to `lamjax data convert` and write it anew."
        )
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


def _as_type(frame: Frame, dtype: DTypeLike | None) -> Frame:
    """The frame with positions, cell, forces, virial, weights and parameters in `dtype`."""
    kept = frame.labels
    return frame._replace(
        system=cast(frame.system, dtype),
        labels=Labels(kept.energy, *(x if x.dtype == dtype else x.astype(dtype) for x in kept[1:])),
    )


def _file(path: Path, options: ReadOptions, remarks: Remarks) -> Iterator[tuple[Path, int, ase.Atoms | ValueError]]:
    """(file, number, structure) of all its structures, with one kind of error for everything that can be wrong.

    It is raised where nothing can be read any more, and stands in the place of a structure before others.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a structure file, for example extxyz, or a DeePMD folder.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty. Was the copy cut short?")
    number = 0
    try:
        for one in formats.structures(path, options, remarks.add):
            yield path, number, ValueError(_unreadable(path, one)) if isinstance(one, ValueError) else one
            number += 1
    except GeneratorExit:
        raise
    except Exception as error:  # every reader of ASE has its own exceptions
        raise ValueError(f"{path}, frame {number}: {_unreadable(path, error)}") from error
    if number == 0:
        left = "; ".join(remark.what for remark in remarks.all() if remark.severity == "warning")
        reason = left or f"its {path.stat().st_size} bytes are white space or lack what makes a structure"
        raise ValueError(f"{path}: no structure in it: {reason}. Was the copy cut short, or another file meant?")


def _unreadable(path: Path, error: Exception) -> str:
    """The message for a structure that cannot be read."""
    own = type(error) is ValueError and str(error).startswith(("line ", "data block ", "it was taken for "))
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    reason = f"{kind}{str(error).rstrip('.')}" if str(error) else "it does not have the form of one"
    hint = "Expected extxyz or another format that ase.io.read knows, packed (.gz, .bz2, .xz) or not."
    return f"not readable as a structure file ({reason}).{'' if own else f' {_instead(path)}{hint}'}"


def _instead(path: Path) -> str:
    """A guess at the kind of a file that holds no structures."""
    with open(path, "rb") as file:
        is_bundle = file.read(13) == b"lamjax bundle"
    if is_bundle or path.suffix in (".pt", ".pth", ".dp", ".nqx"):
        return "It is a model: a command takes that first, and then files of structures. "
    return "It seems to be a config, not structures. " if path.suffix in (".yaml", ".yml", ".json") else ""


def _check_known(symbols: Iterable[str], known: tuple[str, ...] | None) -> None:
    if known is not None and (foreign := sorted(set(symbols) - set(known))):
        raise ValueError(
            f"element {', '.join(foreign)} is not in the model's type map [{', '.join(known)}]. "
            "Use a model that knows it, extend the type map, or remove the frame."
        )


def _check_labels(atoms: ase.Atoms, frame: Frame, require: tuple[str, ...]) -> None:
    missing = [name for name in require if frame.labels.weights[LABELS.index(name)] == 0]
    if missing:
        stored = sorted(held(atoms))
        hint = "" if "virial" not in missing or atoms.pbc.all() else " (a virial needs pbc in all three directions)"
        raise ValueError(
            f"the frame has no {', no '.join(missing)} label{hint}. Looked for REF_<label>, ASE's results and <label>; "
            f"the frame holds: {', '.join(stored) or 'nothing'}. Name its key (--energy-key, --forces-key, "
            "--stress-key), or remove the frame."
        )
