"""The page of commands, from the commands themselves: what `lamjax COMMAND -h` prints, as tables."""

import typer.main

from lamjax.cli import app


def page() -> str:
    """Every command with its arguments, options and defaults."""
    group = typer.main.get_command(app)
    context = group.make_context("lamjax", [], resilient_parsing=True)
    parts = ["# Commands", intro()]
    for name in group.list_commands(context):
        command = loaded(group.get_command(context, name))
        if hasattr(command, "list_commands"):
            inner = command.make_context(name, [], resilient_parsing=True)
            for second in command.list_commands(inner):
                parts += described(f"lamjax {name} {second}", loaded(command.get_command(inner, second)))
        else:
            parts += described(f"lamjax {name}", command)
    return "\n\n".join(parts) + "\n"


def loaded(command):
    """The command itself, for one that is imported when it runs."""
    return command.load() if hasattr(command, "load") else command


def intro() -> str:
    """What holds for all commands."""
    return (
        "This page is made from the commands when the site is built; `lamjax COMMAND -h` prints the same.\n\n"
        "| exit status | meaning |\n|---|---|\n"
        "| 0 | done; structures or frames that failed are named and counted in what was written |\n"
        "| 1 | `lamjax data check` found an error in the data; with a traceback: a fault of lamjax |\n"
        "| 2 | what you can mend: an option, a file, a config, a device; the message says how |\n"
        "| 130 | stopped by Ctrl-C; what was written stays, `--resume` goes on |\n\n"
        "| variable | effect |\n|---|---|\n"
        "| `NO_COLOR=1` | no colours |\n"
        "| `COLUMNS=120` | width of tables where there is no terminal; nothing is cut off in narrow ones |\n"
        "| `LAMJAX_TRACEBACK=1` | an error shows where it came from |\n"
        "| `JAX_PLATFORMS=cpu` | a GPU is left alone |\n"
        "| `JAX_COMPILATION_CACHE_DIR` | where compiled programs are kept (`lamjax info` tells) |\n"
        "| `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` | no huge pages |"
    )


def described(name: str, command) -> list[str]:
    """Heading, text and table of one command."""
    usage = " ".join(p.name.upper() for p in command.params if is_argument(p))
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
    text = (parameter.help or "").replace("|", "\\|").replace("\n", " ")
    return f"| {name} | {text} | {default} |"
