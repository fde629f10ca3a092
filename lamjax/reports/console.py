"""Output in a terminal: tables with units and progress that falls back to plain lines."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False)
EDGE, BORDER = 1, 3  # of a table, and of each column with its blanks
LONG_WORD = 24  # letters; longer ones, such as names of files, may be broken


class FittingTable(NamedTuple):
    """A table for `console.print`, no wider than the terminal: columns without room follow below, in further tables.

    Each of these begins with the first column. Nothing is cut off, and no word shorter than 25 letters is broken.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        texts = [[name, *(row[k] for row in self.rows)] for k, name in enumerate(self.columns)]
        least, whole = list(map(_longest_word, texts)), list(map(_longest, texts))
        for number, chosen in enumerate(_groups(least, options.max_width)):
            part = Table(title=escape(self.title) if number == 0 else None, title_justify="left")
            widths = _shared(options.max_width - EDGE, [least[k] for k in chosen], [whole[k] for k in chosen])
            for k, width in zip(chosen, widths, strict=True):
                side: Any = "left" if k == 0 else "right"
                part.add_column(escape(self.columns[k]), justify=side, overflow="fold", width=width)
            for row in self.rows:
                part.add_row(*(escape(row[k]) for k in chosen))
            yield part


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> FittingTable:
    """A table; the first column is left-aligned, the others are to the right, floats with four digits.

    Brackets are what they are: names of files may have them.
    """
    return FittingTable(title, columns, [[_text(value) for value in row] for row in rows])


def _longest(texts: Iterable[str]) -> int:
    return max((cell_len(line) for text in texts for line in text.splitlines()), default=0)


def _longest_word(texts: Iterable[str]) -> int:
    return min(LONG_WORD, _longest(word for text in texts for word in text.split()))


def _groups(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The columns of each table: as many as fit beside one another, the first one in all of them."""
    chosen: list[int] = []
    for k in range(len(widths)):
        if len(chosen) > 1 and EDGE + sum(widths[j] + BORDER for j in (*chosen, k)) > room:
            yield chosen
            chosen = [0]
        chosen = [*chosen, k]
    yield chosen


def _shared(room: int, least: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Widths between the least and that of the whole text, the same for all columns that do not get theirs."""
    for most in range(max(whole), 0, -1):
        widths = [max(low, min(high, most)) for low, high in zip(least, whole, strict=True)]
        if sum(width + BORDER for width in widths) <= room:
            return widths
    return [max(1, min(low, room // len(least) - BORDER)) for low in least]  # a very narrow terminal


def bars(*more: str) -> Progress:
    """Bars for a terminal: what, how far, how long already, how long still, and more of the task's fields."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), *map(TextColumn, more), console=console)


def progress(items: Iterable, description: str, total: int | None, interval: float = 10.0) -> Iterator:
    """The items one by one under a progress bar; without a terminal a plain line each `interval` seconds.

    `total` is None where the number is not known.
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
            left = _remaining(last - began, done, total)
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
                left = _remaining(last - began, done - before, total - before)
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


def _remaining(seconds: float, done: int, total: int | None) -> str:
    """`, 3 min left`, if what is left takes as long as what is done; nothing at the ends."""
    if total is None or not 0 < done < total:
        return ""
    left = seconds * (total - done) / done
    for unit, size in (("h", 3600), ("min", 60)):
        if left >= 2 * size:
            return f", {left / size:.0f} {unit} left"
    return f", {left:.0f} s left"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
