"""Warnings of the library, and what to do after Ctrl-C, as lines of a command's own."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from lamjax.reports import console


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Warnings as text, without the place in the source that issued them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                console.print(f"[yellow]Warning:[/] {escape(str(warning.message))}", soft_wrap=True)


@contextlib.contextmanager
def resumable(output: str | Path) -> Iterator[None]:
    """Ctrl-C is followed by a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. --resume goes on from the last state that is in {output}.", soft_wrap=True)
        raise
