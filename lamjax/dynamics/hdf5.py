"""A trajectory in HDF5: one array a quantity, which grows along its first axis.

Written for one writer and any number of readers (HDF5's SWMR), because then the file stays readable whenever the writer
is killed: `h5py.File(path, "r", swmr=True)` opens it even then.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lamjax import files
from lamjax.dynamics.records import Record

FORMAT, VERSION = "lamjax trajectory", 1
UNITS = {
    "step": "",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "temperature": "K",
    "stress": "eV/Å³, of potential and motion, xx yy zz yz xz xy, positive in tension",
    "volume": "Å³",
    "conserved": "eV",
    "positions": "Å, Cartesian, unwrapped",
    "momenta": "sqrt(amu eV)",
    "cell": "Å, rows are lattice vectors",
    "forces": "eV/Å",
    "truncated": "",
}
LIBVER = ("v110", "v110")  # the first that knows SWMR
BLOCK = 1 << 18  # bytes of a chunk, about
MARGIN = 1 << 16  # for HDF5's own structures


def append(path: Path, record: Record, still: dict[str, np.ndarray], timestep: float) -> None:
    """The steps of a record at the end; the first ones make the file, with `still` and the time step (fs) in it.

    Raises OSError if it cannot be written.
    """
    if not path.is_file():
        _create(path, record, still, timestep)
    _reserve(path, record)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_file_locking(False, True)  # a reader must not block the writer
    try:
        opened = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE, access)
        opened_file: Any = h5py.File(opened)
        with opened_file as file:
            n = len(file["step"])
            for name, values in reversed(list(record._asdict().items())):  # the steps last: they say how many there are
                file[name].resize(n + len(values), axis=0)
                file[name][n:] = values
        files.flush(path)
    except (OSError, RuntimeError) as error:  # h5py has both for a full disk
        raise OSError(f"{path}: {error}") from error


def mark(path: Path) -> dict[str, Any]:
    """The number of frames in the file."""
    if not path.is_file():
        return {"frames": 0}
    with _reading(path) as file:
        return {"frames": len(file["step"])}


def cut(path: Path, mark: dict[str, Any]) -> None:
    """The file with the frames of the mark alone; ValueError if it has fewer.

    It is made anew beside the old one if it has more, or was left open by a process that was killed.
    """
    n = mark["frames"]
    if n == 0 and not path.is_file():
        return
    with _reading(path) as file:
        if file.attrs.get("format") != FORMAT or len(file["step"]) < n:
            raise ValueError(f"{path} holds fewer than the {n} frames that were written: it was changed since.")
        if any(len(file[name]) != n for name in UNITS) or not _is_closed(path):
            _copy(file, path, n)


def _create(path: Path, record: Record, still: dict[str, np.ndarray], timestep: float) -> None:
    def fill(file: h5py.File) -> None:
        for name, values in record._asdict().items():
            _grows(file, name, values.shape[1:], values.dtype)
        for name, values in still.items():
            file.create_dataset(name, data=values)
        file.attrs.update(format=FORMAT, version=VERSION, timestep_fs=timestep)

    _write_beside(path, fill)


def _copy(old: h5py.File, path: Path, n: int) -> None:
    """The first n frames in a new file, which takes the place of the old one."""

    def fill(file: h5py.File) -> None:
        for name, values in old.items():
            if name not in UNITS:
                old.copy(name, file)
                continue
            new = _grows(file, name, values.shape[1:], values.dtype)
            new.resize(n, axis=0)
            for k in range(0, n, new.chunks[0]):
                end = min(n, k + new.chunks[0])
                new[k:end] = values[k:end]
        file.attrs.update(old.attrs)

    _write_beside(path, fill)


def _grows(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    rows = int(np.clip(BLOCK // max(1, np.prod(shape) * dtype.itemsize), 1, 1024))
    made = file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape))
    made.attrs["unit"] = UNITS[name]
    return made


def _write_beside(path: Path, fill: Any) -> None:
    """A file that appears whole or not at all."""
    with files.replacing(path) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
        fill(file)


def _reserve(path: Path, record: Record) -> None:
    """Raise OSError if there is no room for a record: in the middle of writing HDF5 would take the process with it."""
    needed = MARGIN + sum(values.nbytes + BLOCK for values in record)
    if hasattr(os, "posix_fallocate"):  # not everywhere
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), path.stat().st_size, needed)  # HDF5 gives back what it does not use


def _is_closed(path: Path) -> bool:
    """Whether the writer of the file has closed it."""
    try:
        h5py.File(path, "r", locking=False).close()
    except OSError:
        return False
    return True


def _reading(path: Path) -> Any:
    closed = _is_closed(path)
    return h5py.File(path, "r", locking=False) if closed else h5py.File(path, "r", swmr=True, locking=False)
