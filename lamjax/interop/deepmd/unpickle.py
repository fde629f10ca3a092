"""Pickled objects of torch's files, built without torch and without running anything that they ask for."""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lamjax.interop.deepmd.words import short
from lamjax.potential import CheckpointError

_STORAGES = {
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
_DTYPES = {
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("double", "float", "half", "long", "int", "short", "complex64", "complex128", "strided"),
}
_LARGEST = 2**28  # numbers of a tensor that repeats those of its storage


class Script(dict):
    """An object of a TorchScript program, as the attributes that it holds; of its class nothing is known or run."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {"": state})


class Storage(NamedTuple):
    """The flat numbers behind one or more tensors."""

    values: np.ndarray


class Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class or function is refused before it exists.

    `read` gives the bytes of a storage by its key.
    """

    def __init__(self, data: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._read = read
        self._storages: dict[tuple[str, str], Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and (name in _STORAGES or name in _DTYPES):
            return name
        if module.split(".")[0] == "__torch__":
            return Script
        if admitted := _ADMITTED.get((module, name)):
            return admitted
        if package := OTHERS.get(module.split(".")[0]):
            raise CheckpointError(
                f"a model of {package} ({short(f'{module}.{name}')}): its file is made of Python objects, which only "
                "that package can read, and this architecture is not among those that lamjax opens (DPA-1, DPA-2, "
                "DPA-3, Nequix; MACE, NequIP, ViSNet and eSEN of the mlip package by lamjax.interop.mlip). Its ASE "
                "calculator can label structures (lamjax label) and be the teacher of a model of lamjax's (lamjax "
                "distill). Nothing was run"
            )
        raise CheckpointError(
            f"the file asks for {short(f'{module}.{name}')}. Only tensors and plain containers are admitted, because "
            "anything else could run code; nothing was run. DeePMD-kit's files hold no such thing: do not trust this "
            "one unless you know why it does."
        )

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or dtype not in _STORAGES:
            raise CheckpointError(f"unknown storage {short(pid)}.")
        if (key, dtype) not in self._storages:
            values = np.frombuffer(self._read(key), _STORAGES[dtype])
            if len(values) < size:
                raise CheckpointError(f"storage {short(key)} holds {len(values)} numbers, {size} were announced.")
            self._storages[key, dtype] = Storage(values)
        return self._storages[key, dtype]


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A view of a storage; every element must lie inside it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage.values)):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its storage of {len(storage.values)} numbers")
    if math.prod(size) > max(_LARGEST, len(storage.values)):
        raise ValueError(f"a tensor of shape {tuple(size)} repeats the {len(storage.values)} numbers of its storage")
    if 0 in size:
        return np.zeros(size, storage.values.dtype)
    strides = tuple(step * storage.values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage.values[offset:], size, strides, writeable=False)


def _first(value: Any, *_: Any) -> Any:
    return value


def _typed(build: Callable, _type: Any, arguments: tuple, *_: Any) -> Any:
    """A tensor of a subclass, or with attributes, as what it is without these."""
    if build not in (_tensor, _first):
        raise ValueError(f"a tensor is made by {short(build)}")
    return build(*arguments)


def _device(*names: str) -> str:
    return ":".join(map(str, names))


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which the older protocols write as text in Latin-1."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are encoded as {short(encoding)}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """Empty bytes, which the older protocols make by a call."""
    return b""


# packages whose files people have, by the Python package that their classes are of
OTHERS = {
    "mace": "MACE",
    "nequip": "NequIP (torch)",
    "allegro": "Allegro",
    "sevenn": "SevenNet",
    "orb_models": "ORB",
    "chgnet": "CHGNet",
    "mattersim": "MatterSim",
    "matgl": "MatGL",
    "fairchem": "fairchem",
    "ocpmodels": "Open Catalyst's models",
    "schnetpack": "SchNetPack",
    "metatomic": "metatomic",
}


class _Dtype:
    """A numpy dtype of plain numbers or text."""

    def __init__(self, name: str, *_: Any) -> None:
        self.numpy = np.dtype(str(name))
        if self.numpy.kind not in "biufcSU" or self.numpy.names:
            raise ValueError(f"numbers are of dtype {short(name)}")

    def __setstate__(self, state: tuple) -> None:
        _, order, *described = state
        if any(part is not None for part in described[:3]):
            raise ValueError(f"numbers are of a dtype with fields {short(described[:3])}")
        if order in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(order)


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """A numpy scalar, as Python's."""
    if len(data) != dtype.numpy.itemsize:
        raise ValueError(f"a scalar of dtype {dtype.numpy} has {len(data)} bytes")
    return np.frombuffer(data, dtype.numpy)[0].item()


class _Array(np.ndarray):
    """A numpy array whose content is checked before it is taken."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or min(shape, default=0) < 0:
            raise ValueError(f"an array holds {short(data)} in shape {short(shape)}")
        if math.prod(shape) * dtype.numpy.itemsize != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} has {len(data)} bytes of dtype {dtype.numpy}")
        super().__setstate__((version, tuple(shape), dtype.numpy, bool(fortran), data))


def _array(*_: Any) -> _Array:
    """An array that is still to be filled."""
    return np.ndarray.__new__(_Array, (0,), np.int8)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed,
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("torch.nn.parameter", "Buffer"): "Buffer",
    ("torch", "Size"): tuple,
    ("torch", "device"): _device,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_reconstruct"): _array for module in _NUMPY},
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, complex)},
}
