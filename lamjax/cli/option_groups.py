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
        arguments = inspect.signature(command).parameters
        parameters = [one for name in arguments for one in options.get(name, {name: arguments[name]}).values()]
        signature = inspect.Signature([one.replace(kind=one.POSITIONAL_OR_KEYWORD) for one in parameters])

        @functools.wraps(command)
        def run(*args: Any, **keywords: Any) -> None:
            given = signature.bind(*args, **keywords)
            given.apply_defaults()
            values = given.arguments
            made = {name: groups[name](**{key: values.pop(key) for key in own}) for name, own in options.items()}
            command(**values, **made)

        vars(run)["__signature__"] = signature
        return run

    return decorated
