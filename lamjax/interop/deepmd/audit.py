"""Nothing of a serialised model goes unread: every entry is one that lamjax would write too, or without effect.

A tree repeats itself: a layer states its activation and a block its cutoff beside the descriptor's own options. What
it says twice must agree, and formats newer than the known ones are refused.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamjax.interop.deepmd.options import ATTENTION, COMPRESSED, DPA1_NAMES
from lamjax.interop.deepmd.words import short
from lamjax.potential import CheckpointError

# the newest known format of each class of entry (DeePMD-kit 3.2); of descriptors and fitting nets by their type
_NEWEST = {
    **dict.fromkeys(("Model", "TypeEmbedNet", "Layer", "EmbeddingNetwork", "RepformerLayer", "RepFlowLayer"), 2),
    **dict.fromkeys(("NetworkCollection", "FittingNetwork", "LayerNorm", "Identity", "NeighborGatedAttention"), 1),
    **dict.fromkeys(("Atten2Map", "Atten2MultiHeadApply", "Atten2EquiVarApply", "LocalAtten"), 1),
    **{("Descriptor", name): 2 for name in (*DPA1_NAMES, "dpa3")},
    ("Descriptor", "dpa2"): 3,
    ("Fitting", "ener"): 4,
}
_TYPED = ("Descriptor", "Fitting")
_TOP = {"model", "model_def_script", "software", "version", "time", "backend", "@variables"}
_RELEASES = re.compile(r"\w+_version$")  # of torch, jax and so on
# without effect on energies (how a model was trained, the precision of its numbers), or checked elsewhere
_SILENT = {"@version", "precision", "rcond", "preset_out_bias", "seed", "trainable", "trainable_ln", "type"}
_MOST = 3  # faults that are said


def check_kind(tree: dict) -> None:
    """CheckpointError for a file that holds more than a model, and for a compressed model."""
    if unknown := sorted(key for key in tree if key not in _TOP and not _RELEASES.match(key)):
        raise CheckpointError(f"the file holds {unknown[0]} = {short(tree[unknown[0]])}, which lamjax does not know.")
    for path, entry in _entries(tree["model"], "model"):
        if "compress" in entry:
            raise CheckpointError(f"the model is compressed ({path}.compress): {COMPRESSED}")


def check_formats(model: dict) -> None:
    """CheckpointError for an entry of the model's tree, at any depth, of an unknown class or too new a format."""
    for path, entry in _entries(model, "model"):
        if "@class" in entry:
            _check_format(path, entry)


def _kind(entry: dict) -> str | tuple[str, str]:
    """The class of an entry, with its type where there are several."""
    return (entry["@class"], str(entry.get("type"))) if entry["@class"] in _TYPED else str(entry["@class"])


def _check_format(path: str, entry: dict) -> None:
    newest, version = _NEWEST.get(_kind(entry)), entry.get("@version", 1)
    if newest is None:
        raise CheckpointError(f"{path} is an entry of class {short(entry['@class'])}, which lamjax does not know.")
    if isinstance(version, bool) or not isinstance(version, int | float) or not 1 <= version <= newest:
        raise CheckpointError(
            f"{path} has @version {short(version)}; known: 1 to {newest}. A DeePMD-kit newer than 3.2 wrote it, or "
            "with options that lamjax does not have. Write the model with DeePMD-kit 3.2, or use a newer lamjax."
        )


def check_entries(theirs: dict, ours: dict) -> None:
    """CheckpointError for entries of a model's tree that `ours`, written of what was read, lacks or contradicts."""
    faults = list(_differences(theirs, ours, "model"))
    if faults:
        more = f" And {len(faults) - _MOST} more." if len(faults) > _MOST else ""
        raise CheckpointError("; ".join(faults[:_MOST]) + f".{more}")


def _entries(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Every dict, and where it is."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _entries(value, f"{path}.{key}")
    elif isinstance(node, list):
        for k, value in enumerate(node):
            yield from _entries(value, f"{path}.{k}")


def _differences(theirs: Any, ours: Any, path: str, silent: Any = frozenset(_SILENT)) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if theirs.get("@class") == "Descriptor" and theirs.get("type") in DPA1_NAMES:
            silent = silent | ATTENTION
        if "@class" in theirs and "@variables" in ours and "@variables" not in theirs:
            ours = ours | ours["@variables"]  # first formats keep vectors among the options
        for key in theirs.keys() - silent:
            if key in ours:
                yield from _differences(theirs[key], ours[key], f"{path}.{key}", silent)
            elif not _is_empty(theirs[key]):
                yield f"{path}.{key} = {short(theirs[key])} is an entry that lamjax does not know"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for k, (x, y) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(x, y, f"{path}.{k}", silent)
    elif not _same(theirs, ours) and not (path.endswith(".env_mat.protection") and theirs == 0):  # 0 is "not said"
        yield f"{path} is {short(theirs)}, but by the model's other options {short(ours)}"


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
        return theirs.shape == ours.shape and np.array_equal(theirs, ours, equal_nan=True)
    if _is_empty(theirs) and _is_empty(ours):
        return True
    return type(_plain(theirs)) is type(_plain(ours)) and _plain(theirs) == _plain(ours)


def _is_empty(value: Any) -> bool:
    """Whether a value is null, an empty list, or a list of nulls."""
    return value is None or (isinstance(value, list | dict) and all(v is None for v in value))


def _plain(value: Any) -> Any:
    """A value such that equal meanings are equal: `linear` as `none`, [60] as 60, 1 as 1.0."""
    if isinstance(value, list) and len(value) == 1:
        return _plain(value[0])
    if isinstance(value, str):
        return "none" if value.lower() == "linear" else value.lower()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
