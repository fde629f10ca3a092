"""DeePMD-kit's model files, told apart by content: `.dp` (HDF5), `.yaml`, and torch's `.pt`, `.pth`, `.pt2`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from lamjax.interop.deepmd import state_dict, torch_file
from lamjax.interop.deepmd.torch_file import INFLATION, LARGEST
from lamjax.interop.deepmd.tree import from_tree
from lamjax.interop.deepmd.types import with_elements
from lamjax.interop.deepmd.words import short
from lamjax.potential import CheckpointError, Params, PotentialConfig


def kind(path: str | Path) -> str | None:
    """ "dp", "yaml", "pt" (a checkpoint), "pth" (frozen) or "pt2" (exported, also `.pte`); None for anything else.

    The file is one of DeePMD-kit, perhaps damaged further on.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89HDF"):
        return "dp" if _is_dp(path) else None
    if head.startswith(b"PK"):
        return torch_file.kind(path)
    return "yaml" if _looks_like_yaml(head) else None


def load(
    path: str | Path, head: str | None = None, elements: Mapping[str, str] | None = None
) -> tuple[PotentialConfig, Params]:
    """Config and parameters (numpy, as stored) with all heads of a file.

    A `.dp` or `.yaml` holds one head, called "Default". Of a multi-task checkpoint whose heads do not share one
    descriptor only `head` is loaded. `elements` says which element a type is whose name is none, as in {"OW": "O"}.
    Nothing of the file is executed.
    """
    try:
        match kind(path):
            case "dp":
                return from_tree(with_elements(read_dp(path), elements))
            case "yaml":
                return from_tree(with_elements(read_yaml(path), elements))
            case "pt":
                return state_dict.from_checkpoint(with_elements(torch_file.read(path), elements), head)
            case "pth":
                return state_dict.from_checkpoint(with_elements(torch_file.read_script(path), elements), head)
            case "pt2":
                exported, graph = torch_file.read_exported(path)
                return from_tree(with_elements(_arrays(exported), elements), graph)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(path)) else f"{path}: {message}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: an entry of the model is missing or of a wrong form ({type(error).__name__}: {str(error)[:200]})."
        ) from error
    raise CheckpointError(f"{path}: not a model file of DeePMD-kit (.dp, .yaml, .pt, .pth, .pt2).")


def read_dp(path: str | Path) -> dict:
    """The serialised tree of a `.dp` file with its arrays in place."""
    try:
        with h5py.File(path) as file:
            return _resolve(json.loads(file.attrs["json"]), file, inside=False)
    except CheckpointError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a complete DeePMD-kit `.dp` file ({error}). Expected HDF5 with the attribute 'json' and the "
            "arrays that it names. Was the copy truncated?"
        ) from error


def read_yaml(path: str | Path) -> dict:
    """The serialised tree of a `.yaml` file with its arrays in place."""
    try:
        text = Path(path).read_text()
        tree = yaml.load(text, _Loader)
        if _size(tree, {}) > len(text):
            raise ValueError("its references make it larger than it is, as in a file made to fill the memory")
        tree = _arrays(tree)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a complete YAML file ({error}). Was the copy truncated?") from error
    if missing := [key for key in ("model", "version") if not isinstance(tree, dict) or key not in tree]:
        raise CheckpointError(
            f"{path}: not a complete model of DeePMD-kit: it has no {' and no '.join(missing)}. Was the copy truncated?"
        )
    return tree


def _is_dp(path: str | Path) -> bool:
    try:
        with h5py.File(path) as file:
            return "json" in file.attrs
    except OSError:
        return False


def _looks_like_yaml(head: bytes) -> bool:
    """A text that begins with a key of DeePMD-kit's tree (they are written in alphabetical order)."""
    first = head.lstrip().split(b":")[0].strip(b"\"' ")
    return first in (b"@variables", b"backend", b"model", b"software")


# the C loader is several times faster, and not in every build of PyYAML
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _size(node: Any, known: dict[int, int]) -> int:
    """The number of values in a tree whose parts may be referred to many times."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = sum(_size(value, known) for value in (node.values() if isinstance(node, dict) else node))
    return known[id(node)]


def _arrays(node: Any) -> Any:
    """The tree with maps of class np.ndarray replaced by the arrays that they describe."""
    if isinstance(node, dict):
        if node.get("@class") == "np.ndarray":
            return np.array(node["value"], dtype=np.dtype(str(node["dtype"])))
        return {key: _arrays(value) for key, value in node.items()}
    return [_arrays(value) for value in node] if isinstance(node, list) else node


def _resolve(node: Any, file: Any, inside: bool) -> Any:
    """The tree with dataset names below an `@variables` key replaced by arrays."""
    if isinstance(node, dict):
        return {key: _resolve(value, file, inside or key == "@variables") for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, file, inside) for value in node]
    return _numbers(file, node) if inside and isinstance(node, str) else node


def _numbers(file: h5py.File, name: str) -> np.ndarray:
    """The array of a data set that lies in this file as a whole."""
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "biuf":
        raise CheckpointError(f"{file.filename}: {short(name)} is no array of numbers.")
    if data.file.filename != file.filename or data.external or data.is_virtual:
        raise CheckpointError(f"{file.filename}: the array {short(name)} lies in another file. Copy it into this one.")
    if data.nbytes > max(LARGEST, INFLATION * Path(file.filename).stat().st_size):
        raise CheckpointError(
            f"{file.filename}: the array {short(name)} announces {data.nbytes:,} bytes, far more than the file has: "
            "it is damaged, or made to fill the memory."
        )
    return np.asarray(data[()])
