"""What to do after Ctrl-C, as a line of a command's own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lamjax.reports import console


@contextlib.contextmanager
def resumable(output: str | Path) -> Iterator[None]:
    """Ctrl-C is followed by a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. --resume goes on from the last state that is in {output}.", soft_wrap=True)
        raise
