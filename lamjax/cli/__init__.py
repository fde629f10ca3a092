"""The `lamjax` command: each subcommand is a thin shell over functions of the library."""

import inspect
import os
import sys

import jax
import typer
from rich.markup import escape

from lamjax.cli import cache
from lamjax.cli.convert import convert
from lamjax.cli.data import check
from lamjax.cli.data_convert import convert as convert_data
from lamjax.cli.demo import demo
from lamjax.cli.distill import distill
from lamjax.cli.evaluate import evaluate
from lamjax.cli.explore import explore
from lamjax.cli.finetune import finetune
from lamjax.cli.info import info
from lamjax.cli.label import label
from lamjax.cli.md import md
from lamjax.cli.properties import properties
from lamjax.cli.relax import relax
from lamjax.cli.show import show
from lamjax.cli.train import train
from lamjax.reports import console


def flowing(command) -> str:
    """The docstring of a command with a line for each paragraph, which a terminal of any width breaks by itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.getdoc(command).split("\n\n"))


app = typer.Typer(
    help="Large atomic models in JAX: DPA-2, fine-tuned through its own relaxation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look at data sets, and pack them.", no_args_is_help=True)
data_app.command(help=flowing(check))(check)
data_app.command("convert", help=flowing(convert_data))(convert_data)
for command in (demo, train, finetune, distill, explore, label, relax, properties, md, show, convert, info):
    app.command(help=flowing(command))(command)
app.command("eval", help=flowing(evaluate))(evaluate)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command; what the user can mend is one message, not a traceback."""
    cache.enable()
    try:
        app()
    except Exception as error:
        mendable = isinstance(error, ValueError | OSError | FloatingPointError)
        said = no_device() or (str(error) if mendable else None)
        if said is None or os.environ.get("LAMJAX_TRACEBACK"):
            raise
        console.print(f"[bold red]Error:[/] {escape(said)}", soft_wrap=True)
        console.print("(LAMJAX_TRACEBACK=1 shows where it came from.)", style="dim")
        sys.exit(2)


def no_device() -> str | None:
    """What to do if JAX has no device of the kind that it is told to use; None if it has one, or is told nothing.

    JAX finds that out where it is first asked to compute, and raises this or that, which others take for a fault of
    their own, such as a damaged file.
    """
    if not jax.config.jax_platforms:
        return None
    try:
        jax.devices()
    except Exception as error:
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no reason is given"
        return (
            f"JAX finds no device of the kind that JAX_PLATFORMS={jax.config.jax_platforms} asks for ({reason}). Unset "
            "JAX_PLATFORMS, or set it to cpu. A GPU needs its driver and JAX's plugin for it: pip install "
            '"jax[cuda12]", or what jax.dev says for other kinds.'
        )
    return None
