"""Commands that are imported when they run, so that `lamjax --help` is there at once."""

import ast
import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

OPENING = ("show", "eval", "relax", "properties", "md", "train", "finetune", "finetune-structures")  # a model
OPENING += ("finetune-properties", "distill", "explore", "label")
POTENTIAL = (
    "Instead of {}: a function of your own that makes the potential, module:function, with its options as in "
    "module:pair,n=9. It is imported because you name it."
)
TRUST = "module:function, imported if a model file holds its parameters; never without this; repeatable."
PANEL = "Potentials of your own"
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
            commands = {**{name: LazyCommand(name, place) for name, place in places.items()}, **self.commands}
            headings = {name: heading for heading, names in (panels or {}).items() for name in names}
            self.commands = {name: commands[name] for name in dict.fromkeys([*headings, *commands])}
            for name, heading in headings.items():
                self.commands[name].rich_help_panel = heading

    return LazyGroup


class LazyCommand(TyperCommand):
    """A command of which only the first sentence is known until it runs."""

    def __init__(self, name: str, place: str) -> None:
        self.place = place
        super().__init__(name, help=_docstring(*place.split(":")).partition("\n")[0])

    def load(self) -> Any:
        """Import the command."""
        module, function = self.place.split(":")
        command = getattr(importlib.import_module(module), function)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        kind = getattr(importlib.import_module(module), "COMMAND_CLASS", TyperCommand)
        alone.command(self.name, cls=kind, help=flowing(_docstring(module, function)))(command)
        made = typer.main.get_command(alone)
        made.params += own_potentials(made) if self.name in OPENING else []
        return made

    def make_context(self, info_name: str | None, args: Any, parent: Any = None, **extra: Any) -> Any:
        if _own_process.get():
            importlib.import_module("lamjax.cli.cache").enable()
        command = self.load()
        own = {option for one in command.params if not one.expose_value for option in one.opts}
        args = model_first(args) if "--potential" in own else args  # `explore` has one of another meaning
        return command.make_context(info_name, args, parent, **extra)


def own_potentials(command: Any) -> list[Any]:
    """The options by which a command takes potentials of the user's own: --trust, and --potential where it has a model.

    A model is the command's first argument.
    """
    first = command.params[0]
    has_model = isinstance(first, TyperArgument) and first.name in ("model", "base", "teacher")
    instead = POTENTIAL.format(str(first.name).upper())

    def options(
        potential: Annotated[str | None, typer.Option("--potential", help=instead, rich_help_panel=PANEL)] = None,
        trust: Annotated[
            list[str] | None, typer.Option("--trust", help=TRUST, callback=_trust, rich_help_panel=PANEL)
        ] = None,
    ) -> None:
        """They never reach a command: one is moved to its first argument, the other is a consent."""

    alone = typer.Typer(add_completion=False)
    alone.command()(options)
    parameters: list[Any] = [one for one in typer.main.get_command(alone).params if has_model or one.name == "trust"]
    for one in parameters:
        one.expose_value = False
    return parameters


def _trust(names: list[str] | None) -> None:
    """Allow model files to name these functions."""
    if names:
        importlib.import_module("lamjax.imported").trust(names)


def model_first(args: Sequence[str]) -> list[str]:
    """The arguments of a command with the value of --potential as the first one, where its model stands."""
    rest, name = [], None
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif option == "--potential":
            name = value if equals else next(words, None)
            rest += [word] if name is None else []  # the parser says that its value is missing
        else:
            rest.append(word)
    return rest if name is None else [name, *rest]


def flowing(text: str) -> str:
    """A docstring with a line for each paragraph, which a terminal of any width breaks by itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _docstring(module: str, function: str) -> str:
    """The docstring of a function in a module that need not be imported."""
    spec = importlib.util.find_spec(module)
    path = Path(str(spec and spec.origin))
    definitions = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == function)
    definition: Any = next(definitions)
    return ast.get_docstring(definition) or ""
