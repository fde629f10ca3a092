"""The page of commands, from the commands themselves: what `lamjax COMMAND -h` prints, as tables."""

import typer.main

from lamjax.cli import app


def page() -> str:
    """Every command with its arguments, options and defaults."""
    group = typer.main.get_command(app)
    context = group.make_context("lamjax", [], resilient_parsing=True)
    parts = ["# Commands", intro()]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            inner = command.make_context(name, [], resilient_parsing=True)
            for second in command.list_commands(inner):
                parts += described(f"lamjax {name} {second}", command.get_command(inner, second))
        else:
            parts += described(f"lamjax {name}", command)
    return "\n\n".join(parts) + "\n"


def intro() -> str:
    return (
        "This page is made from the commands when the site is built; `lamjax COMMAND --help` prints the same.\n\n"
        "Exit status: 0 for success, 1 where a command did its work and found what it looks for (`lamjax data check`: "
        "an error in the data) or something was left undone that it names, 2 for what you can mend: a wrong option, a "
        "file, a config, a device. `LAMJAX_TRACEBACK=1` shows where an error came from; `NO_COLOR=1` switches colours "
        "off; `JAX_PLATFORMS=cpu` leaves a GPU alone."
    )


def described(name: str, command) -> list[str]:
    """Heading, text and table of one command."""
    usage = " ".join(p.make_metavar(None) if False else p.name.upper() for p in command.params if is_argument(p))
    rows = [row(p) for p in command.params if not p.hidden and p.name != "help"]
    table = ["| | what | default |", "|---|---|---|", *rows]
    return [f"## {name}", f"```\n{name} [OPTIONS] {usage}\n```", command.help or "", "\n".join(table)]


def is_argument(parameter) -> bool:
    return parameter.param_type_name == "argument"


def row(parameter) -> str:
    name = parameter.name.upper() if is_argument(parameter) else " ".join(f"`{o}`" for o in parameter.opts)
    default = "" if parameter.default in (None, False, ()) or callable(parameter.default) else f"`{parameter.default}`"
    if parameter.required:
        default = "required"
    said = (parameter.help or "").replace("|", "\\|").replace("\n", " ")
    return f"| {name} | {said} | {default} |"
