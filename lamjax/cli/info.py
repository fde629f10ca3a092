"""`lamjax info`: what is installed."""

import platform
from importlib.metadata import version
from typing import Any, cast

import jax
import jax.numpy as jnp

from lamjax.cli import cache
from lamjax.reports import console, table

PACKAGES = ("lamjax", "jax", "jaxlib", "jax-md", "optax", "orbax-checkpoint", "flax", "ase", "vesin", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, lamjax and what its numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def info() -> None:
    """Print versions, devices and precision: what to put into a bug report."""
    rows, settings = list(versions().items()), cast(Any, jax.config)
    rows += [("devices", ", ".join(map(str, jax.devices())))]
    x64 = "" if settings.jax_enable_x64 else " (x64 is off)"
    rows += [("default float", f"{jnp.zeros((), float).dtype}{x64}")]
    rows += [("matmul precision", str(settings.jax_default_matmul_precision or "backend default"))]
    rows += [("compiled programs", f"{cache.folder()} ({cache.size() / 2**20:.0f} MB)")]
    console.print(table("lamjax", ("what", "value"), rows))
