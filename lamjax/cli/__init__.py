"""The `lamjax` command: each subcommand is a thin shell over functions of the library, and imported when it runs."""

import importlib
from importlib.metadata import version
from typing import Annotated

import typer

from lamjax.cli.later import group, own_process

COMMANDS = {
    "demo": "lamjax.cli.demo:demo",
    "train": "lamjax.cli.train:train",
    "finetune": "lamjax.cli.finetune:finetune",
    "finetune-structures": "lamjax.cli.finetune_structures:finetune_structures",
    "finetune-properties": "lamjax.cli.finetune_properties:finetune_properties",
    "distill": "lamjax.cli.distill:distill",
    "explore": "lamjax.cli.explore:explore",
    "label": "lamjax.cli.label:label",
    "eval": "lamjax.cli.evaluate:evaluate",
    "relax": "lamjax.cli.relax:relax",
    "properties": "lamjax.cli.properties:properties",
    "md": "lamjax.cli.md:md",
    "show": "lamjax.cli.show:show",
    "report": "lamjax.cli.report:report",
    "convert": "lamjax.cli.convert:convert",
    "info": "lamjax.cli.info:info",
}
WORKFLOW = {  # the order in which one needs them, and how help shows them
    "See it work": ("demo", "info"),
    "Look at data and models": ("data", "show", "eval", "report", "convert"),
    "Train": ("train", "finetune", "finetune-structures", "finetune-properties"),
    "Make it small, or let it choose its data": ("distill", "explore", "label"),
    "Use it": ("relax", "properties", "md"),
}
DATA = {"check": "lamjax.cli.data:check", "convert": "lamjax.cli.data_convert:convert"}

app = typer.Typer(
    cls=group(COMMANDS, WORKFLOW),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,  # lamjax --install-completion
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(typer.Typer(cls=group(DATA), help="Look at data sets, and pack them.", no_args_is_help=True), name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lamjax {version('lamjax')}")
        raise typer.Exit()


@app.callback()
def lamjax(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Machine-learned interatomic potentials in JAX: DPA-2 and DPA-3, fine-tuned through their own relaxation."""


def main() -> None:
    """Run the command; what the user can mend is one message, not a traceback."""
    try:
        with own_process():
            app()
    except Exception as error:
        importlib.import_module("lamjax.cli.failure").end(error)
        raise
