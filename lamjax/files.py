"""Files of which nothing is lost when a process is killed or the disk is full."""

import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk: `path` is there whole or as it was.

    A symbolic link stays one, and who may read a file stays as it was. A device gets the content written to it.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = None if is_device(path) else path.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        yield temporary
        flush(temporary)
        if is_device(path):
            with open(temporary, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            return
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


def is_device(path: str | Path) -> bool:
    """Whether it is a terminal, a pipe or the like, where nothing can be lost and which no file may replace."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """No other process that asks writes `path` meanwhile; ValueError if one does. The system lets go of what is killed.

    The lock of a folder lies in it, that of a file beside it. Where there is no flock (Windows) nothing is checked.
    """
    if fcntl is None:
        yield
        return
    path = Path(path)
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    if (file := locked(lock)) is None:
        raise ValueError(f"Another process is writing {path}. Wait until it has ended, or name another output.")
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def locked(lock: str | Path) -> IO | None:
    """The file, open and locked until it is closed or the process ends; None if another one holds it. Needs flock."""
    while True:
        file = open(lock, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # another process ended in between and removed the file: the next one makes a new file


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A Ctrl-C waits until this is over, and then has its effect.

    What is being written is written whole, and no helping thread is stopped half-way. Outside the main thread, which
    alone is interrupted, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(came[0], None)


def write_atomically(path: str | Path, content: bytes) -> None:
    """The file with this content, whole or as it was."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def flush(path: str | Path) -> None:
    """Flush a file to disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def append(path: str | Path, content: bytes) -> None:
    """Write at the end, and flush it to disk."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def size(path: str | Path) -> int:
    """Bytes; 0 where there is no file."""
    return Path(path).stat().st_size if Path(path).is_file() else 0


def cut(path: str | Path, length: int) -> None:
    """Leave the first `length` bytes; ValueError for a file that is shorter."""
    if (present := size(path)) < length:
        raise ValueError(f"{path} has {present} bytes, but {length} were written: it was changed or removed since.")
    if present:
        os.truncate(path, length)
