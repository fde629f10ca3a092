"""Compiled programs on disk, so that the second run of a command does not compile what the first one did."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax


def folder() -> Path:
    """The folder of compiled programs: JAX_COMPILATION_CACHE_DIR, or one for this processor in the user's cache."""
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "lamjax" / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def enable() -> None:
    """Keep compiled programs of this process on disk. For the command alone: the library leaves jax's settings be."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs compilations, nothing else
    jax.config.update("jax_compilation_cache_dir", str(place))
    # XLA takes two of its own preferences for features of the processor and complains of each program that it loads
    # (cpu_aot_loader, jaxlib 0.10); the folder is one processor's, so that it is never right. Python's loggers stay.
    jax.config.update("jax_logging_level", "CRITICAL")
    for name in ("jax", "jaxlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def size() -> int:
    """The size of all files in the folder (bytes)."""
    return sum(path.stat().st_size for path in folder().glob("*") if path.is_file())


def _processor() -> str:
    """The features of this processor that a program may depend on: machine code of one kind can fail on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
