"""Checks of the outputs of a command before its work begins: they can be written, and none is one of the inputs."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from lamjax.files import is_device

Name = str | Path


def check_ending(path: Name, endings: Sequence[str], what: str) -> None:
    """Raise ValueError, with what there is, for a file whose name says another format than is written to it."""
    if not str(path).endswith(tuple(endings)) and not is_device(path):
        raise ValueError(f"{path}: the name must end in {_listed(endings)}: {what} written in no other format.")


def claim(paths: Iterable[Name], inputs: Iterable[Name] = (), option: str = "output") -> None:
    """Make the folders of these files, and make sure that the files can be written and are none of the inputs.

    However an input is named: relative, by a symbolic or a hard link. `option` is what the user shall change. Raises
    ValueError for an input and for a folder, OSError for what cannot be written.
    """
    paths, known = list(map(Path, _with_vectors(paths))), _Files(inputs)
    for path in paths:
        if (source := known.find(path)) is not None:
            raise ValueError(_over(path, source, option))
        if path.is_dir():
            raise ValueError(f"{path} is a folder. Name a file for {option}, for example {path / 'NAME'}.")
    for path in paths:
        if is_device(path):
            continue
        _make(path.parent, option)
        if path.exists() and not os.access(path, os.W_OK):
            raise OSError(f"{path} is write-protected. Choose another {option}, or give the right to write it.")


def claim_folder(folder: Name, names: Sequence[str], inputs: Iterable[Name] = (), option: str = "output") -> None:
    """Make a folder, and make sure that it can be written and that none of the inputs is among what will be in it.

    `names` are those of the files that a run writes, relative to the folder, with * for anything ("states/*"); an
    input of another name may well lie in the same folder. Raises as `claim`.
    """
    folder, patterns, inputs = Path(folder), [str(name) for name in _with_vectors(names)], list(inputs)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Name a folder for {option}.")
    whole, known = os.path.realpath(folder), _Files(inputs)
    for source in inputs:
        inside = os.path.relpath(os.path.realpath(source), whole).replace(os.sep, "/")
        if any(fnmatch(inside, pattern) for pattern in patterns):
            raise ValueError(_over(folder / inside, source, option))
    for path in _written(folder, patterns):
        if (source := known.find(path)) is not None:
            raise ValueError(_over(path, source, option))
    _make(folder, option)


def _with_vectors(names: Iterable[Name]) -> list[Name]:
    """Beside every PNG lies an SVG of the same plot (`reports.style`)."""
    names = list(names)
    return names + [type(name)(f"{str(name)[:-4]}.svg") for name in names if str(name).endswith(".png")]


class _Files:
    """Files by what they are, not by how they are named."""

    def __init__(self, paths: Iterable[Name]) -> None:
        self.places: dict[str, Name] = {}
        self.nodes: dict[tuple[int, int], Name] = {}
        for path in paths:
            self.places.setdefault(os.path.realpath(path), path)
            if (node := _node(path)) is not None:
                self.nodes.setdefault(node, path)

    def find(self, path: Path) -> Name | None:
        """The name under which this file is among them; None if it is not."""
        if is_device(path):
            return None
        return self.places.get(os.path.realpath(path), self.nodes.get(_node(path)))


def _node(path: Name) -> tuple[int, int] | None:
    """The number of a file on its disk, which all its hard links share."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _written(folder: Path, names: Sequence[str]) -> Iterable[Path]:
    """The files that are in a folder already and that a run writes."""
    for place, folders, files in os.walk(folder):
        if place == str(folder):  # do not walk through other folders there
            folders[:] = [name for name in folders if any(fnmatch(f"{name}/", pattern) for pattern in names)]
        for path in (Path(place) / name for name in files):
            if any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in names):
                yield path


def _make(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder}: nothing can be written to this folder ({error.strerror}). Choose another {option}, or give "
            "the right to write there."
        ) from error


def _over(path: Path, source: Name, option: str) -> str:
    named = "" if str(path) == str(source) else f" (given as {source})"
    return f"{path} would be written, but it is one of the inputs{named} and would be lost. Choose another {option}."


def _listed(endings: Sequence[str]) -> str:
    return endings[0] if len(endings) == 1 else f"{', '.join(endings[:-1])} or {endings[-1]}"
