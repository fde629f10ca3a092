"""Compiled programs on disk, so that the second run of a command does not compile what the first one did."""

import hashlib
import os
import platform
from pathlib import Path

from jax.experimental.compilation_cache import compilation_cache


def folder() -> Path:
    """Where programs are kept: JAX_COMPILATION_CACHE_DIR, or a folder for this processor in the user's cache."""
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "lamjax" / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def enable() -> None:
    """Keep compiled programs of this process on disk. For commands: a library leaves this to the script."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs compilations, nothing else
    compilation_cache.set_cache_dir(str(place))


def size() -> int:
    """Bytes in the folder."""
    return sum(path.stat().st_size for path in folder().glob("*") if path.is_file())


def _processor() -> str:
    """What a program for this processor may depend on: machine code of one kind can fail on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
