"""What people see in a terminal: tables with units and progress that falls back to plain lines."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A rich table; the first column is left-aligned, numbers to the right, floats with four digits.

    Brackets are what they are: names of files may have them.
    """
    result = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(escape(column), justify="left" if index == 0 else "right", overflow="fold")  # never cut off
    for row in rows:
        result.add_row(*(_cell(value) for value in row))
    return result


def bars(*more: str) -> Progress:
    """Bars for a terminal: what, how far, how long already, how long still, and more of the task's fields."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), *map(TextColumn, more), console=console)


def progress(items: Iterable, description: str, total: int | None, interval: float = 10.0) -> Iterator:
    """The items one by one under a progress bar; without a terminal a plain line each `interval` seconds.

    `total` is None where nobody knows how many there will be.
    """
    if console.is_terminal:
        with bars() as shown:
            yield from shown.track(items, total=total, description=escape(description))
        return
    began = last = time.monotonic()
    description = escape(description)
    if total is not None:
        console.print(f"{description}: {total} to do")
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > interval or done == total:
            last = time.monotonic()
            left = _left(last - began, done, total)
            console.print(f"{description}: {done}" if total is None else f"{description}: {done}/{total}{left}")


@contextlib.contextmanager
def bar(what: str, total: int, done: int = 0, interval: float = math.inf) -> Iterator[Callable[..., None]]:
    """A function (done, note, total) that moves a progress bar, with a note beside it; a new total where it is given.

    There is a bar only in a terminal; elsewhere a plain line each `interval` seconds.
    """
    if not console.is_terminal:
        began, before = time.monotonic(), done
        last = began

        def tell(done: int, note: str = "", total: int = total) -> None:
            nonlocal last
            if time.monotonic() - last > interval:
                last = time.monotonic()
                left = _left(last - began, done - before, total - before)
                console.print(f"{what}: {done}/{total}{left}  {note}".rstrip(), soft_wrap=True)

        yield tell
        return
    with bars("{task.fields[note]}") as shown:
        task = shown.add_task(what, total=total, completed=done, note="")
        yield lambda done, note="", total=total: shown.update(task, completed=done, note=note, total=total)


@contextlib.contextmanager
def warnings_as_text() -> Iterator[None]:
    """Warnings as text, without the place in the source that issued them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                console.print(f"[yellow]Warning:[/] {escape(str(warning.message))}", soft_wrap=True)


def _left(seconds: float, done: int, total: int | None) -> str:
    """`, 3 min left`, if what is left takes as long as what is done; nothing at the ends."""
    if total is None or not 0 < done < total:
        return ""
    left = seconds * (total - done) / done
    for unit, size in (("h", 3600), ("min", 60)):
        if left >= 2 * size:
            return f", {left / size:.0f} {unit} left"
    return f", {left:.0f} s left"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))
