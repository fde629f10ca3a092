"""Structures appended to an extxyz file one by one: what is whole in it after a kill is found again."""

import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import ase
import numpy as np

from lamjax.audit import theory_levels as levels
from lamjax.data import labels
from lamjax.files import replacing


def append(file: TextIO, atoms: ase.Atoms) -> None:
    """One record, handed to the system at once: a run that is killed loses no structure that was reported as done."""
    import ase.io

    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    file.write(text.getvalue())
    file.flush()


def write(path: str | Path, structures: Iterable[ase.Atoms]) -> None:
    """An extxyz file (.gz: compressed), frame by frame, whole or not at all."""
    import ase.io

    opened = gzip.open if str(path).endswith(".gz") else open
    with replacing(path) as temporary, opened(temporary, "wt") as file:
        for atoms in structures:
            ase.io.write(file, atoms, format="extxyz")


def plain_info(info: dict[str, Any]) -> dict[str, Any]:
    """The texts and numbers of a frame's info that are no labels; text on one line, as a record needs it."""
    kept = {k: v for k, v in info.items() if np.ndim(v) == 0 and not _is_label(k)}
    return {key: one_line(value) if isinstance(value, str) else value for key, value in kept.items()}


def _is_label(key: str) -> bool:
    """Whether a reader would take a key for a label."""
    return key == levels.KEY or labels.quantity(str(key)) is not None or labels.looks_like_label(key)


def one_line(text: str, most: int = 1000) -> str:
    """The text with every run of white space as one blank: a line break would end the line of a record's info."""
    return " ".join(text.split())[:most]


def whole_records(path: Path, writer: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The info of each record, and where it ends; one that was not written to its end is left out.

    Raises ValueError for a file that `writer` ("lamjax relax") cannot have written.
    """
    from ase.io.extxyz import key_val_str_to_dict

    with open(path, "rb") as file:
        while first := file.readline():
            if not first.strip().isdigit():
                raise ValueError(f"{path}: not written by `{writer}`. Name another --output, or remove it.")
            comment = file.readline()
            last = comment if not int(first) else [file.readline() for _ in range(int(first))][-1]
            if not last.endswith(b"\n"):
                return
            yield key_val_str_to_dict(comment.decode().strip()), file.tell()
