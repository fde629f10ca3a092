"""Messages of commands for errors that the user can mend."""

import errno
import os
import sys
from typing import Any

import jax
from rich.markup import escape

from lamjax.reports import console

_SETTINGS: Any = jax.config
EXHAUSTED = "RESOURCE_EXHAUSTED"  # in JAX's errors where memory is too small
TROUBLE = "docs/troubleshooting.md"
PAGES = {  # which page helps with what goes wrong in a part of the library; the innermost part counts
    "lamjax.imported": "docs/how-to/bring-your-own.md",
    "lamjax.imports": "docs/how-to/bring-your-own.md",
    "lamjax.checkpoints": "docs/files.md",
    "lamjax.interop": "docs/coming-from/deepmd.md",
    "lamjax.data": "docs/files.md",
    "lamjax.edit": "docs/how-to/edit.md",
    "lamjax.relaxation": "docs/how-to/relax.md",
    "lamjax.dynamics": "docs/how-to/simulate.md",
    "lamjax.properties": "docs/how-to/properties.md",
    "lamjax.distillation": "docs/how-to/distil.md",
    "lamjax.training.structures": "docs/how-to/finetune-structures.md",
    "lamjax.training.tuning": "docs/how-to/finetune-structures.md",
    "lamjax.training.loggers": "docs/how-to/watch.md",
    "lamjax.training": "docs/how-to/train.md",
    "lamjax.cli.finetune": "docs/how-to/finetune.md",
    "lamjax.cli.convert": "docs/how-to/edit.md",
    "lamjax.cli.report": "docs/how-to/watch.md",
}


def end(error: Exception) -> None:
    """Print one message and exit with code 2 if the user can mend the error, or if there is no device; else return."""
    message = no_device() or message_of(error)
    if message is None or os.environ.get("LAMJAX_TRACEBACK"):
        return
    console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    page = page_of(error)
    pages = TROUBLE if page is None else f"{page} and {TROUBLE}"
    hint = f"(Pages that help: {pages}. LAMJAX_TRACEBACK=1 shows where it came from.)"
    console.print(hint, style="dim", soft_wrap=True)
    sys.exit(2)


def message_of(error: Exception) -> str | None:
    """The message for an error that the user can mend; None for any other."""
    match error:
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            place = f" ({error.filename})" if error.filename else ""
            return (
                f"Nothing more can be written: {error.strerror}{place}. Make room, or name another --output; a command "
                "with --resume then goes on."
            )
        case ImportError():
            return f"A package is missing or cannot be loaded: {error}"
        case ValueError() | OSError() | FloatingPointError():
            return str(error)
    return no_memory(error)


def no_memory(error: Exception) -> str | None:
    """The remedy where memory was too small for a computation; None for any other error."""
    if isinstance(error, MemoryError) or isinstance(error, jax.errors.JaxRuntimeError) and EXHAUSTED in str(error):
        reason = str(error).partition("\n")[0] or type(error).__name__
        return (
            f"There is not enough memory: {reason}. Take smaller structures, batches or supercells, fewer at a time, "
            "or --precision float32, where the command has them."
        )
    return None


def page_of(error: BaseException) -> str | None:
    """The page of the documentation on the innermost part of the library in which the error was raised."""
    page, traceback = None, error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        known = [part for part in PAGES if name == part or name.startswith((f"{part}.", f"{part}_"))]
        page = PAGES[max(known, key=len)] if known else page
        traceback = traceback.tb_next
    return page


def no_device() -> str | None:
    """A message if JAX has no device of the kind that JAX_PLATFORMS names; None if it has one, or none is named.

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
