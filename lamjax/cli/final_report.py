"""The page of a run that has just ended; what writes pages is loaded only then."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from lamjax.reports import console


def at_end(path: Path, starts: Mapping[str, Any] | None = None) -> None:
    """Write the page of a run that has just ended; a failure is reported, and nothing else is lost."""
    try:
        written = importlib.import_module("lamjax.cli.report").write(path, starts)
    except Exception as error:  # whatever it is, the run is done
        fault = f"The report was not written ({type(error).__name__}: {error}); all else is there."
        console.print(f"[yellow]{escape(fault)}[/] `lamjax report {escape(str(path))}` tries again.", soft_wrap=True)
    else:
        console.print(f"to look at: {escape(str(written))}", soft_wrap=True)
