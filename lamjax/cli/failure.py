"""What a command says where it cannot do what is asked."""

import os
import sys
from typing import Any

import jax
from rich.markup import escape

from lamjax.reports import console

_SETTINGS: Any = jax.config
MORE = "LAMJAX_TRACEBACK=1 shows where it came from; docs/troubleshooting.md explains messages"


def end(error: Exception) -> None:
    """Print one message and exit with code 2 if the user can mend the error, or if there is no device; else return."""
    mendable = isinstance(error, ValueError | OSError | FloatingPointError)
    message = no_device() or (str(error) if mendable else None)
    if message is None or os.environ.get("LAMJAX_TRACEBACK"):
        return
    console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    console.print(f"({MORE})", style="dim", soft_wrap=True)
    sys.exit(2)


def no_device() -> str | None:
    """What to do if JAX has no device of the kind that it is told to use; None if it has one, or is told nothing.

    JAX finds that out where it is first asked to compute, and raises this or that, which others take for a fault of
    their own, such as a damaged file.
    """
    if not _SETTINGS.jax_platforms:
        return None
    try:
        jax.devices()
    except Exception as error:
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no reason is given"
        return (
            f"JAX finds no device of the kind that JAX_PLATFORMS={_SETTINGS.jax_platforms} asks for ({reason}). Unset "
            "JAX_PLATFORMS, or set it to cpu. A GPU needs its driver and JAX's plugin for it: pip install "
            '"jax[cuda12]", or what jax.dev says for other kinds.'
        )
    return None
