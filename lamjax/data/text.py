"""Files as text, whatever packed or encoded them: gzip, bzip2 and xz by content, UTF-8, UTF-16 and latin-1."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_OTHER = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
ENDINGS = (".gz", ".bz2", ".xz")


def is_packed(path: Path) -> bool:
    """True for a file that gzip, bzip2 or xz made, whatever its name."""
    return _opener(path) is not open


def open_binary(path: Path) -> BinaryIO:
    """The unpacked bytes of a file; ValueError for archives of other kinds."""
    with open(path, "rb") as file:
        head = file.read(4)
    for magic, kind in _OTHER.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: a {kind} archive; gzip, bzip2 and xz are unpacked by themselves. Unpack it.")
    return _opener(path)(path, "rb")


def is_text(path: Path) -> bool:
    """False for a file with zero bytes at its beginning, unless these are of UTF-16."""
    with open_binary(path) as file:
        head = file.read(4096)
    return b"\0" not in head or head.startswith(_UTF16)


def open_text(path: Path) -> TextIO:
    """The lines of a file, ended by "\\n" alone, without a byte order mark; what is not UTF-8 is read as latin-1."""
    with open_binary(path) as file:
        head = file.read(2)
    encoding = "utf-16" if head in _UTF16 else "utf-8-sig"
    return io.TextIOWrapper(open_binary(path), encoding, errors="surrogateescape")


def lines(file: TextIO) -> Iterator[str]:
    """The lines of `open_text`, each without its end."""
    for line in file:
        yield readable(line.rstrip("\n"))


def readable(text: str) -> str:
    """The text with bytes that are not UTF-8 as the characters that they are in latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


def attempted(read: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `read` for one structure of a file, or its ValueError: the next structure can be read still."""
    try:
        return read(*arguments)
    except ValueError as error:
        return error


def name_unpacked(path: Path) -> str:
    """The name of a file without the ending of its compression."""
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def _opener(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), open)
