"""What fine-tuning on structures and on properties have in common: options, and how a run is followed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from lamjax.reports import bars, console, progress
from lamjax.training import engine

PERIOD = 10.0  # s between lines where there is no terminal

Base = Annotated[Path, typer.Argument(help="small, a lamjax bundle or a DeePMD-kit model (.pt, .dp, .yaml).")]
Head = Annotated[str | None, typer.Option(help="The head that learns, where there are several.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML or JSON with any key of --template; options go first.")
]
Keys = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of a config: --set epochs=3, or just --epochs 3.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for states, tables, plot and models.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last state in the output folder.")]


def template_option(text: str) -> Any:
    """The option --template, which prints `text`, a config with all keys, and ends the command."""

    def show(wanted: bool) -> None:
        if wanted:
            print(text, end="")
            raise typer.Exit()

    return typer.Option("--template", help="Print a config with all keys and stop.", is_eager=True, callback=show)


def follow(run: engine.Run, text_of: Callable[..., str]) -> None:
    """The events of the run, as bars and lines; `text_of(event, run, errors before training)` is a line, or empty."""
    before, last = None, time.monotonic()
    with _bars(run.settings.steps, run.done) as (advance, watch):
        for event in engine.events(run, watch):
            if isinstance(event, engine.RunRecord):
                advance(event.step)
                if not event.validation and (console.is_terminal or time.monotonic() - last < PERIOD):
                    continue
                before = event.validation if event.step == 0 else before
            last = time.monotonic()
            if text := text_of(event, run, before):
                console.print(text, soft_wrap=True)


@contextlib.contextmanager
def _bars(total: int, done: int) -> Iterator[tuple[Callable[[int], None], Callable]]:
    """(what moves the bar of the training to a step, what watches relaxations); bars in a terminal, else lines."""
    if not console.is_terminal:
        yield (lambda step: None), progress
        return
    with bars() as bar:
        task = bar.add_task("training", total=total, completed=done)

        def watch(items: Iterator, what: str, n: int) -> Iterator:
            relaxing = bar.add_task(what, total=n)
            for item in items:
                bar.advance(relaxing)
                yield item
            bar.remove_task(relaxing)

        yield (lambda step: bar.update(task, completed=step)), watch
