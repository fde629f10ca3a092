"""Options of commands that belong together, made into one value before the command is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_groups(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator of commands: an argument named here takes what its function makes of the function's own options.

    These stand in the place of that argument, in the command line as in its help.
    """
    options = {name: inspect.signature(make).parameters for name, make in groups.items()}

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {name: groups[name](**{key: given.pop(key) for key in own}) for name, own in options.items()}
            command(**given, **made)

        arguments = inspect.signature(command).parameters
        parameters = [one for name in arguments for one in options.get(name, {name: arguments[name]}).values()]
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        vars(run)["__signature__"] = inspect.Signature(keywords)
        return run

    return decorated
