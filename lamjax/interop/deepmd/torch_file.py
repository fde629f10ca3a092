"""Torch's checkpoint files (`torch.save`) read without torch, and without running anything that they contain."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lamjax.potential import CheckpointError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    """The flat numbers behind one or more tensors."""

    values: np.ndarray


def is_torch_file(path: str | Path) -> bool:
    """True for a zip archive that holds a pickled object as `torch.save` writes it; told by content, not by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _prefix(archive) is not None
    except (zipfile.BadZipFile, OSError):
        return False


def read(path: str | Path) -> Any:
    """The object of a checkpoint: dicts, lists, numbers and strings, with tensors as numpy arrays.

    Only tensors and plain containers are admitted. Raises CheckpointError that names anything else, and for a damaged
    or truncated archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(path, archive)
    except CheckpointError:
        raise
    except Exception as error:  # zip, pickle and numpy have many ways to say that bytes are missing
        raise CheckpointError(
            f"{path}: not a complete torch checkpoint ({type(error).__name__}: {error}). Was the copy truncated?"
        ) from error


def _load(path, archive: zipfile.ZipFile) -> Any:
    prefix = _prefix(archive)
    if prefix is None:
        raise CheckpointError(f"{path}: a zip archive without `data.pkl`; torch's checkpoints hold one.")
    names = set(archive.namelist())
    if f"{prefix}/constants.pkl" in names or any(name.startswith(f"{prefix}/code/") for name in names):
        raise CheckpointError(
            f"{path}: a TorchScript archive (a frozen `.pth`), which is a program and not data. Use the checkpoint "
            "(`model.ckpt.pt`) that it was frozen from, or convert it with DeePMD-kit to `.dp`."
        )
    if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder") != b"little":
        raise CheckpointError(f"{path}: the numbers are stored big-endian, which is not supported.")
    return _Unpickler(path, archive, prefix).load()


def _prefix(archive: zipfile.ZipFile) -> str | None:
    """The folder in the archive that holds `data.pkl`."""
    found = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    return found[0].removesuffix("/data.pkl") if found else None


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class or function is refused before it exists."""

    def __init__(self, path, archive: zipfile.ZipFile, prefix: str):
        super().__init__(io.BytesIO(archive.read(f"{prefix}/data.pkl")), encoding="utf-8")
        self._path, self._archive, self._prefix = path, archive, prefix
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str):
        if module == "torch" and name in _DTYPES:
            return name
        if found := _ADMITTED.get((module, name)):
            return found
        raise CheckpointError(
            f"{self._path}: the file asks for {module}.{name}. Only tensors and plain containers are admitted, because "
            "anything else could run code; nothing was run. Do not trust this file."
        )

    def persistent_load(self, pid) -> _Storage:
        kind, storage_type, key, _, size = pid
        if kind != "storage" or storage_type not in _DTYPES:
            raise CheckpointError(f"{self._path}: unknown storage {pid!r}.")
        if key not in self._storages:
            values = np.frombuffer(self._archive.read(f"{self._prefix}/data/{key}"), _DTYPES[storage_type])
            if len(values) < size:
                raise CheckpointError(
                    f"{self._path}: storage {key} holds {len(values)} numbers, {size} were announced."
                )
            self._storages[key] = _Storage(values)
        return self._storages[key]


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """A view of a storage; every element must lie inside it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage.values)):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {len(storage.values)} numbers")
    if 0 in size:
        return np.zeros(size, storage.values.dtype)
    strides = tuple(step * storage.values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage.values[offset:], size, strides, writeable=False)


def _parameter(tensor: np.ndarray, *_) -> np.ndarray:
    return tensor


_ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
}
