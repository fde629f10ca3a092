"""Torch's archives read as data alone, without torch: checkpoints, TorchScript (`.pth`), exported models (`.pt2`)."""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.interop.deepmd.unpickle import Script, Unpickler
from lamjax.potential import CheckpointError

# limits of the content of a file: bytes, or so many times its own size; a larger one is no model
LARGEST, INFLATION = 2**28, 8
_EXPORTED = re.compile(r"(^|/)extra(_files)?/model\.json$")
_MODIFIER = re.compile(r"(^|/)extra/data_modifier\.pth$")


def kind(path: str | Path) -> str | None:
    """ "pt" for an archive as `torch.save` writes it, "pth" TorchScript, "pt2" an exported model; told by content."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return None
    if any(_EXPORTED.search(name) for name in names):
        return "pt2"
    prefix = _prefix(names)
    if prefix is None:
        return None
    script = f"{prefix}/constants.pkl" in names or any(name.startswith(f"{prefix}/code/") for name in names)
    return "pth" if script else "pt"


def read(path: str | Path) -> Any:
    """The object of a checkpoint or a TorchScript file: dicts, lists, numbers and strings, tensors as numpy arrays.

    Only tensors and plain containers are admitted. Raises CheckpointError that names anything else, and for a damaged
    or truncated archive.
    """
    with _opened(path) as archive:
        names = archive.namelist()
        prefix = _prefix(names)
        if prefix is None:
            raise CheckpointError("a zip archive without `data.pkl`; torch's checkpoints hold one.")
        if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder").strip() != b"little":
            raise CheckpointError("the numbers are stored big-endian, which is not supported.")
        data = archive.read(f"{prefix}/data.pkl")
        return Unpickler(data, lambda key: archive.read(f"{prefix}/data/{key}")).load()


def read_script(path: str | Path) -> dict:
    """A frozen `.pth` as the checkpoint's content that it was made from: named tensors and the model's options."""
    with _opened(path) as archive:
        if any(_MODIFIER.search(part.filename) and part.file_size for part in archive.infolist()):
            raise CheckpointError("the model has a data modifier (data_modifier.pth), which is not supported.")
    model = read(path)
    script = model.get("model_def_script") if isinstance(model, Script) else None
    try:
        options = json.loads(script)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "a TorchScript file without DeePMD-kit's `model_def_script`, which holds the model's options. Use the "
            "checkpoint (`model.ckpt.pt`) that it was frozen from."
        ) from error
    tensors = {f"model.Default.{name}": value for name, value in _tensors(model, "")}
    return {"model": {**tensors, "_extra_state": {"model_params": options}}}


def read_exported(path: str | Path) -> tuple[Any, bool]:
    """The serialised tree of a `.pt2` or `.pte`, its arrays as maps, and whether its sums run over neighbours alone."""
    with _opened(path) as archive:
        name = next(name for name in archive.namelist() if _EXPORTED.search(name))
        described = f"{name.removesuffix('model.json')}metadata.json"
        metadata = json.loads(archive.read(described)) if described in archive.namelist() else {}
        return json.loads(archive.read(name)), metadata.get("lower_input_kind", "nlist") != "nlist"


@contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with it becomes a CheckpointError that begins with its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, Path(path).stat().st_size)
            yield archive
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # zip, pickle and numpy have many ways to say that bytes are missing
        raise CheckpointError(
            f"{path}: not a complete torch file ({type(error).__name__}: {str(error)[:200]}). Was the copy truncated?"
        ) from error


def _check_size(archive: zipfile.ZipFile, size: int) -> None:
    announced = sum(part.file_size for part in archive.infolist())
    if announced > max(LARGEST, INFLATION * size):
        raise CheckpointError(
            f"its parts announce {announced:,} bytes in a file of {size:,}: torch's files are not compressed, so this "
            "is a damaged file or one made to fill the memory. Nothing was read."
        )


def _prefix(names: list[str]) -> str | None:
    """The folder in the archive that holds `data.pkl`."""
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    return pickles[0].removesuffix("/data.pkl") if pickles else None


def _tensors(module: Script, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a TorchScript object and the objects below it, by their path."""
    for name, value in module.items():
        if isinstance(value, Script):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
