"""Commands that are imported when they run, so that `lamjax --help` is there at once."""

import ast
import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_own_process = ContextVar("own_process", default=False)


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Commands that begin within may change settings of JAX: the process is theirs alone."""
    token = _own_process.set(True)
    try:
        yield
    finally:
        _own_process.reset(token)


def group(places: Mapping[str, str], panels: Mapping[str, Sequence[str]] | None = None) -> type[TyperGroup]:
    """The class of a group whose commands {name: "module:function"} are imported when they run.

    `panels` {heading: names} says under which heading, and in which order, help shows the commands.
    """

    class LazyGroup(TyperGroup):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            found = {**{name: LazyCommand(name, place) for name, place in places.items()}, **self.commands}
            headings = {name: heading for heading, names in (panels or {}).items() for name in names}
            self.commands = {name: found[name] for name in dict.fromkeys([*headings, *found])}
            for name, heading in headings.items():
                self.commands[name].rich_help_panel = heading

    return LazyGroup


class LazyCommand(TyperCommand):
    """A command of which only the first sentence is known until it runs."""

    def __init__(self, name: str, place: str) -> None:
        self.place = place
        super().__init__(name, help=_docstring(*place.split(":")).partition("\n")[0])

    def load(self) -> Any:
        """The command itself."""
        module, function = self.place.split(":")
        command = getattr(importlib.import_module(module), function)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        kind = getattr(importlib.import_module(module), "COMMAND_CLASS", TyperCommand)
        alone.command(self.name, cls=kind, help=flowing(_docstring(module, function)))(command)
        return typer.main.get_command(alone)

    def make_context(self, info_name: str | None, args: Any, parent: Any = None, **extra: Any) -> Any:
        if _own_process.get():
            importlib.import_module("lamjax.cli.cache").enable()
        return self.load().make_context(info_name, args, parent, **extra)


def flowing(text: str) -> str:
    """A docstring with a line for each paragraph, which a terminal of any width breaks by itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _docstring(module: str, function: str) -> str:
    """The docstring of a function in a module that need not be imported."""
    spec = importlib.util.find_spec(module)
    path = Path(str(spec and spec.origin))
    found = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == function)
    definition: Any = next(found)
    return ast.get_docstring(definition) or ""
