"""Structures of a file in whatever format it is, one after another: told apart by name and content."""

import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase

from lamjax.data import cif, extxyz, lammps, shelx, text, vasp
from lamjax.data.labels import ReadOptions

XYZ = (".xyz", ".extxyz")
_HEAD = 4096  # characters that tell a format


def structures(path: Path, options: ReadOptions, note: Callable[..., Any]) -> Iterator[ase.Atoms | ValueError]:
    """The structures of a file: packed by gzip, bzip2, xz or not, with any name. Each format raises its own errors.

    For a structure that cannot be read while those after it can there is its ValueError.
    `note(severity, what, remedy, n=1)` is called for what is odd, or left out, in the file as a whole.
    """
    match kind(path):
        case "extxyz":
            with text.open_text(path) as file:
                yield from extxyz.frames(text.lines(file), note, options.elements)
        case "lammps-dump-text":
            with text.open_text(path) as file:
                yield from lammps.frames(text.lines(file), options.elements, note)
        case "lammps-data":
            with text.open_text(path) as file:
                yield lammps.data_file(text.lines(file), options.elements)
        case "vasp-out":
            with text.open_text(path) as file:
                yield from vasp.outcar(text.lines(file), path.absolute().parent, note)
        case "vasp-xml":
            with _plain(path, None) as plain:  # its encoding is in its first line
                yield from vasp.vasprun(str(plain), note)
        case "cif":
            with text.open_text(path) as file:
                yield from cif.frames(io.StringIO("\n".join(text.lines(file))), note)
        case "res":
            with text.open_text(path) as file:
                shelx.check(text.lines(file))
            yield from _by_ase(path, "res")
        case other:
            yield from _by_ase(path, other)


def _by_ase(path: Path, kind: str) -> Iterator[ase.Atoms]:
    """The structures that ASE's own reader of a format finds; its exceptions become faults of the file."""
    from ase.io import formats

    n = 0
    with _plain(path, kind) as plain:
        try:
            for atoms in formats.iread(str(plain), ":", format=kind, do_not_split_by_at_sign=True):
                yield atoms
                n += 1
        except (OSError, ImportError):
            raise
        except Exception as error:  # whatever its parser raises
            after = f" after {n} {'structures' if n > 1 else 'structure'}" if n else ""
            raise ValueError(
                f"it was taken for {formats.ioformats[kind].description} (ASE's format {kind}) and ends too early or "
                f"is malformed{after}; ASE says {type(error).__name__}: {error}"
            ) from error


def kind(path: Path) -> str:
    """ASE's name of the format of a file; ValueError if neither name nor content shows it."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    name = text.name_unpacked(path)
    if name.lower().endswith(XYZ):
        return "extxyz"
    with text.open_text(path) as file:
        head = file.read(_HEAD).lstrip()
    if head.startswith("ITEM:"):
        return "lammps-dump-text"
    if re.search(r"^\s*\d+\s+atoms\s*$", head, re.M) and re.search(r"\bxlo\s+xhi\b", head):
        return "lammps-data"
    if re.match(r"vasp\.\d", head):
        return "vasp-out"
    if head.startswith("<?xml") and "<modeling>" in head:
        return "vasp-xml"
    with _plain(path, None) as plain, contextlib.suppress(UnknownFileTypeError):
        format = filetype(str(plain))
        if format in ioformats:
            return format
    if re.match(r"\d+[ \t]*\n", head):
        return "extxyz"
    raise ValueError("neither its name nor its beginning tells the format")


@contextlib.contextmanager
def _plain(path: Path, kind: str | None) -> Iterator[Path]:
    """The absolute path of a file as ASE can open it: where necessary a copy, unpacked and in UTF-8.

    Absolute, because ASE takes names that begin with postgres or mysql for data bases.
    """
    from ase.io.formats import ioformats

    binary = kind is None or ioformats[kind].isbinary or not text.is_text(path)
    if not text.is_packed(path) and (binary or _is_clean(path)):
        yield path.absolute()
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / text.name_unpacked(path)
        if binary:
            with text.open_binary(path) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target)
        else:
            with text.open_text(path) as source, open(copy, "w", encoding="utf-8") as target:
                target.writelines(line + "\n" for line in text.lines(source))
        yield copy


def _is_clean(path: Path) -> bool:
    """Whether a text file is UTF-8 without a byte order mark and carriage returns."""
    with open(path, "rb") as file:
        first = True
        for line in file:
            if b"\r" in line or first and line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
                return False
            first = False
            try:
                line.decode()
            except UnicodeDecodeError:
                return False
    return True
