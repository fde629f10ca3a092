"""Around the work of a command that writes an output folder: a lock on it, and a message after Ctrl-C."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lamjax import files
from lamjax.reports import console, outputs


@contextlib.contextmanager
def resumable(output: str | Path, locked: bool = True) -> Iterator[None]:
    """Ctrl-C is followed by a line that says how to go on. ValueError if another command writes to this folder now.

    Of several processes that write to it together, only one is to ask for it: the others are not `locked`.
    """
    outputs.claim_folder(output, ())
    try:
        with files.alone(output) if locked else contextlib.nullcontext():
            yield
    except KeyboardInterrupt:
        console.print(f"Interrupted. --resume goes on from the last state that is in {output}.", soft_wrap=True)
        raise
