"""Threads on a processor: how many do something at once, and JAX's settings in them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def same_settings() -> Callable[[], contextlib.AbstractContextManager]:
    """A context, to be entered in another thread, with those settings of this one that JAX keeps for each thread.

    x64, device and the precision of products: what `with jax.enable_x64(True):` and its like have set around a call.
    """
    current: Any = jax.config
    x64, device = bool(current.jax_enable_x64), current.jax_default_device
    precision = current.jax_default_matmul_precision

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        with jax.enable_x64(x64), jax.default_device(device), jax.default_matmul_precision(precision):
            yield

    return settings
