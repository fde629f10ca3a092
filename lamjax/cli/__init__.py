"""The `lamjax` command: each subcommand is a thin shell over functions of the library."""

import typer

from lamjax.cli.info import info, show

app = typer.Typer(
    help="Large atomic models in JAX: DPA-2, fine-tuned through its own relaxation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (show, info):
    app.command()(command)
