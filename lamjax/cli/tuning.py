"""Common parts of fine-tuning on structures and on properties: options, and how a run is followed."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from lamjax.cli.interrupted import resumable
from lamjax.cli.keys import strings
from lamjax.cli.train import banner
from lamjax.reports import bars, console, progress, warnings_as_text
from lamjax.training import engine
from lamjax.training.folder import BEST
from lamjax.training.loops import NonFiniteError
from lamjax.training.tuning import Judged

PERIOD = 10.0  # s between lines where there is no terminal

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


def content_of(base: Path, head: str | None, output: Path | None, replay: Sequence[Path] | None) -> dict[str, Any]:
    """The keys of a config that these options give."""
    content: dict[str, Any] = {"base": str(base)} | ({} if head is None else {"head": head})
    content |= {} if output is None else {"output": str(output)}
    return content | ({"replay": {"files": strings(replay)}} if replay else {})


def train(
    config: Any, prepare: Callable[[], engine.Run], describe: Callable, text_of: Callable[..., str], report: Callable
) -> None:
    """Prepare a run, `describe` it, train to its end and `report` on it.

    In float64 for positions and sums of energies; the network has its own precision.
    """
    with resumable(config.output), jax.enable_x64(True):
        console.print(banner(config.precision))
        with warnings_as_text():
            run = prepare()
        describe(run)
        try:
            follow(run, text_of)
        except NonFiniteError as error:
            raise ValueError(f"{error} --resume goes on from them, with other batches.") from error
        report(run)


def tell_best(judged: Sequence[Judged], what: str, error: str) -> None:
    """Print step and file of the best model, chosen by the `error` of held-out structures or crystals."""
    if judged[0].best:
        console.print(f"No epoch had a smaller {error} than the model before: {BEST} is the model before.")
    elif len(judged) > 2:
        console.print(f"The best was chosen by these very {what}: judge it by others.", style="dim")


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
