"""A packed set of frames on disk, mapped into memory: a frame costs a page fault, not a parser, and nothing grows.

The file is HDF5 because it says itself what it holds and everything reads it; its arrays are contiguous and plain, so
that numpy maps them. LMDB needs pickles and a lock file; zarr's chunks are many files.
"""

import hashlib
import json
import mmap
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jax.typing import DTypeLike

from lamjax.arguments import expect
from lamjax.data.atoms import fixed_mask
from lamjax.data.labels import looks_like_label
from lamjax.files import replacing
from lamjax.frames import Frame, Subset
from lamjax.system import PARAMETERS, Labels, System, cast

FORMAT, VERSION = "lamjax frames", 2  # 2: the info of a frame may hold `fixed`
SUFFIXES = (".h5", ".hdf5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BLOCK = 1 << 22  # bytes that are copied at once
_REMEDY = "Write it anew with `lamjax data convert SOURCES... TARGET.h5`."


class Column(NamedTuple):
    """One array of a store: its name, shape and type."""

    name: str
    shape: tuple[int, ...]  # of one atom or one frame
    dtype: str
    per_atom: bool


class Store(Sequence):
    """The frames of a packed file as a sequence; floats are as written. Threads and processes may read at once.

    Raises ValueError, with the remedy, for a file that is no store, is cut short, or was written by a newer lamjax.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _open(self.path) as file:
            self.digest = str(file.attrs["digest"])  # of all its bytes
            self.dtype = np.dtype(str(file.attrs["dtype"]))  # of positions, cells, forces and virials
            places = {name: (d.id.get_offset(), d.shape, d.dtype) for name, d in file.items()}
        self.arrays = _map(self.path, places)  # numbers, offsets, energy, ... as `_columns` names them
        self.counted: dict[float, np.ndarray] = {}  # neighbours by cutoff, see `shapes.counts`
        self.files, self.keys = json.loads(self.arrays["tables"].tobytes())

    def __len__(self) -> int:
        return len(self.arrays["energy"])

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Store, (self.path,)

    def __getitem__(self, k: Any) -> Subset | Frame:
        if isinstance(k, slice):
            return Subset(self, np.arange(len(self))[k])
        k = self._checked(k)
        a = self.arrays
        atoms = slice(*a["offsets"][k : k + 2].tolist())
        system = System(
            positions=a["positions"][atoms],
            numbers=a["numbers"][atoms].astype(np.int32),
            cell=a["cell"][k],
            pbc=a["pbc"][k].astype(bool),
            fparam=a["fparam"][k] if "fparam" in a else None,
            aparam=a["aparam"][atoms] if "aparam" in a else None,
            charge_spin=a["charge_spin"][k] if "charge_spin" in a else None,
        )
        labels = Labels(np.asarray(a["energy"][k]), a["forces"][atoms], a["virial"][k], a["weights"][k])
        info = a["info"][slice(*a["info_offsets"][k : k + 2].tolist())].tobytes()
        keys = tuple(self.keys[a["key"][k]])
        return Frame(system, labels, self.source(k), keys, _read_info(info, system.n_atoms))

    def source(self, k: int) -> str:
        """The file and number that frame k once had."""
        k = self._checked(k)
        name, number = self.files[self.arrays["file"][k]], int(self.arrays["number"][k])
        return name if number < 0 else f"{name} frame {number}"

    def info_texts(self, rows: Iterable[int]) -> Iterator[bytes]:
        """The info of these frames, as the JSON text of each; nothing else is read."""
        texts, ends = self.arrays["info"], self.arrays["info_offsets"]
        return (texts[ends[k] : ends[k + 1]].tobytes() if len(texts) else b"" for k in rows)

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of every frame, (n_frames,)."""
        return np.diff(self.arrays["offsets"]).astype(np.int32)

    @property
    def atoms_total(self) -> int:
        """Atoms of all frames together."""
        return len(self.arrays["numbers"])

    def frame_of_atom(self, atom: int) -> int:
        """The frame that an atom, counted through all frames, belongs to."""
        return int(np.searchsorted(self.arrays["offsets"], atom, side="right")) - 1

    def _checked(self, k: Any) -> int:
        if not -len(self) <= k < len(self):
            raise IndexError(f"{self.path}: there is no frame {k} among {len(self)}.")
        return int(k) % len(self)


def is_store(path: str | Path) -> bool:
    """True for an HDF5 file."""
    path = Path(path)
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def write_store(path: str | Path, frames: Iterable[Frame], dtype: DTypeLike | None = np.float64) -> int:
    """Write the frames, one after another, to a packed file; returns how many there were.

    Positions, cells, forces, virials and parameters are kept in `dtype`, energies in float64; of `info` what is text or
    a number, and which components are `fixed`. The file is there complete or not at all; while it is written, its
    bytes lie twice on the disk.
    Raises ValueError for a set without frames, and for fparam or aparam that only some frames carry.
    """
    expect(path, (str, Path), "write_store takes the name of a file first", "The order is write_store(path, frames).")
    path, dtype = Path(path), np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"A store holds float32 or float64, not {dtype}.")
    with replacing(path) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
        n, columns, tables = _spool(Path(folder), frames, dtype)
        if n == 0:
            raise ValueError(f"{path}: there is no frame to write.")
        _assemble(temporary, Path(folder), columns, tables, dtype)
    return n


def _columns(frame: Frame, dtype: np.dtype) -> list[Column]:
    """The arrays of a file whose frames are like this one."""
    f = dtype.newbyteorder("<").str
    columns = [
        Column("offsets", (), "<i8", False),
        Column("positions", (3,), f, True),
        Column("numbers", (), "u1", True),
        Column("forces", (3,), f, True),
        Column("cell", (3, 3), f, False),
        Column("pbc", (3,), "u1", False),
        Column("energy", (), "<f8", False),
        Column("virial", (3, 3), f, False),
        Column("weights", (3,), f, False),
        Column("file", (), "<i4", False),
        Column("number", (), "<i8", False),
        Column("key", (), "<i4", False),
        Column("info_offsets", (), "<i8", False),
        Column("info", (), "u1", False),
    ]
    for name, value in (("fparam", frame.system.fparam), ("aparam", frame.system.aparam)):
        if value is not None:
            columns.append(Column(name, (value.shape[-1],), f, name == "aparam"))
    if frame.system.charge_spin is not None:
        columns.append(Column("charge_spin", (2,), "<i4", False))
    return columns


class _Tables:
    """Names that are written once and numbered: of files, and of the keys that labels were found under."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.keys: dict[tuple[str, ...], int] = {}

    def source(self, text: str) -> tuple[int, int]:
        """Numbers of file and frame; -1 for a source that is not "FILE frame K"."""
        match = re.fullmatch(r"(.*) frame (0|[1-9]\d{0,17})", text, re.DOTALL)
        name, number = (match[1], int(match[2])) if match else (text, -1)
        return self.files.setdefault(name, len(self.files)), number

    def key(self, keys: tuple[str, ...]) -> int:
        return self.keys.setdefault(tuple(keys), len(self.keys))

    def packed(self) -> bytes:
        return json.dumps([list(self.files), list(self.keys)]).encode()


def _spool(folder: Path, frames: Iterable[Frame], dtype: np.dtype) -> tuple[int, list[Column], bytes]:
    """Every column as a plain file: what has no known length cannot be a contiguous array of HDF5."""
    n, atoms, texts, columns, files, tables, first = 0, 0, 0, [], {}, _Tables(), None
    try:
        for frame in frames:
            expect(frame, Frame, "write_store takes frames", "Of an ASE structure data.from_atoms makes one.")
            if first is None:
                first, columns = frame, _columns(frame, dtype)
                files = {column.name: open(folder / column.name, "wb", buffering=1 << 18) for column in columns}
                files["offsets"].write(np.int64(0).tobytes())
                files["info_offsets"].write(np.int64(0).tobytes())
            _check_alike(first, frame)
            atoms, info = atoms + frame.system.n_atoms, _info(frame)
            texts += len(info)
            frame = frame._replace(system=cast(frame.system, dtype))
            values = _values(frame, atoms, texts, info, tables)
            for column in columns:
                files[column.name].write(np.ascontiguousarray(values[column.name], column.dtype).tobytes())
            n += 1
    finally:
        for file in files.values():
            file.close()
    return n, columns, tables.packed()


def _values(frame: Frame, atoms: int, texts: int, info: bytes, tables: _Tables) -> dict[str, Any]:
    system, labels = frame.system, frame.labels
    file, number = tables.source(frame.source)
    return {
        **system._asdict(),
        **labels._asdict(),
        "offsets": atoms,
        "file": file,
        "number": number,
        "key": tables.key(frame.keys),
        "info_offsets": texts,
        "info": np.frombuffer(info, np.uint8),
    }


def _info(frame: Frame) -> bytes:
    """Texts, numbers, and the numbers of the `fixed` components, as JSON; labels have columns of their own."""
    known = {"fparam", "charge_spin", "fixed"}
    plain = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in frame.info.items()
        if isinstance(value, str | bool | int | float | np.bool_ | np.integer | np.floating)
        and key not in known
        and not looks_like_label(key)
    }
    if "fixed" in frame.info:
        plain["fixed"] = np.flatnonzero(fixed_mask(frame.info["fixed"], frame.system.n_atoms)).tolist()
    return json.dumps(plain).encode() if plain else b""


def _read_info(text: bytes, n_atoms: int) -> dict[str, Any]:
    info = json.loads(text) if text else {}
    if "fixed" in info:
        components = np.zeros(3 * n_atoms, bool)
        components[info["fixed"]] = True
        info["fixed"] = components.reshape(n_atoms, 3)
    return info


def _check_alike(first: Frame, frame: Frame) -> None:
    for name in PARAMETERS:
        widths = [None if (v := getattr(f.system, name)) is None else v.shape[-1] for f in (first, frame)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"{frame.source} carries {widths[1] or 'no'} numbers {name}, {first.source} {widths[0] or 'none'}. "
                "One store holds frames with the same parameters: write two."
            )


def _assemble(target: Path, folder: Path, columns: list[Column], tables: bytes, dtype: np.dtype) -> None:
    """The columns as contiguous arrays of one HDF5 file."""
    digest = hashlib.blake2b(digest_size=16)
    with h5py.File(target, "w", libver=("earliest", "v110"), alignment_threshold=1, alignment_interval=64) as file:
        for column in columns:
            raw, item = folder / column.name, np.dtype((column.dtype, column.shape))
            n = raw.stat().st_size // item.itemsize
            data = file.create_dataset(column.name, (n, *column.shape), column.dtype)
            rows = max(1, _BLOCK // item.itemsize)
            with open(raw, "rb") as source:
                for start in range(0, n, rows):
                    block = source.read(rows * item.itemsize)
                    digest.update(block)
                    data[start : start + rows] = np.frombuffer(block, column.dtype).reshape(-1, *column.shape)
            raw.unlink()
        file.create_dataset("tables", data=np.frombuffer(tables, np.uint8))
        digest.update(tables)
        file.attrs.update(format=FORMAT, version=VERSION, dtype=dtype.name, digest=digest.hexdigest())


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a store that `lamjax data convert` wrote.")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        kind = "cut short or damaged" if is_store(path) else "no HDF5 file"
        raise ValueError(f"{path}: {kind} ({error}). {_REMEDY}") from error
    form, version = file.attrs.get("format"), file.attrs.get("version", 0)
    if form == FORMAT and version <= VERSION:
        return file
    file.close()
    if form != FORMAT:
        raise ValueError(f"{path}: an HDF5 file, but not one of frames that lamjax wrote. {_REMEDY}")
    raise ValueError(f"{path}: written in form {version} by a newer lamjax; this one knows {VERSION}. Update lamjax.")


def _map(path: Path, places: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The arrays at their places in the file, without reading them."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, (offset, shape, dtype) in places.items():
        size = int(np.prod(shape)) * dtype.itemsize
        if size and (offset is None or offset + size > len(mapped)):
            raise ValueError(f"{path}: cut short: {name} is not complete. {_REMEDY}")
        arrays[name] = np.ndarray(shape, dtype, mapped, offset) if size else np.empty(shape, dtype)
    missing = {"offsets", "positions", "numbers", "forces", "cell", "energy", "weights", "tables"} - arrays.keys()
    if missing:
        raise ValueError(f"{path}: damaged: it has no {', '.join(sorted(missing))}. {_REMEDY}")
    return arrays
