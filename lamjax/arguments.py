"""Checks of arguments and of the fields of configs."""

import dataclasses
import functools
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np


class ArgumentError(ValueError, TypeError):
    """An argument is of another kind than the function takes; the message says of which, and how to get the right one.

    It is a TypeError, and a ValueError as every other error about what a user gave.
    """


def expect(value: Any, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """ArgumentError unless `value` is of the kind; `what` names function and argument: "pack takes a Plan"."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{what}, got {describe(value)}. {remedy}")


def renamed(old: str, new: str) -> property:
    """The field `new` under the name that it had in the last release, with a warning."""

    def value(self: Any) -> Any:
        kind = type(self).__name__
        warnings.warn(f"{kind}.{old} is called {kind}.{new} now.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(value, doc=f"The former name of `{new}`.")


def expect_all(values: Any, kind: type, what: str, remedy: str) -> None:
    """ArgumentError unless `values` is a sequence whose first element is of the kind; the others are as the first."""
    one_of_them = isinstance(values, kind | str)  # a named tuple and a text are sequences too
    if one_of_them or not isinstance(values, Sequence) or (len(values) and not isinstance(values[0], kind)):
        raise ArgumentError(f"{what}, got {describe(values)}. {remedy}")


def describe(value: Any) -> str:
    """A value described in a few words: "a list of Frame", "the text 'a.xyz'", "a Potential"."""
    if isinstance(value, str | PurePath):
        return f"the text {str(value)!r}"
    if value is None or isinstance(value, bool | int | float):
        return f"{value!r}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function or class {value.__name__}"
    name = type(value).__name__
    if type(value) in (list, tuple):
        entries: Any = value
        kinds = list(dict.fromkeys(type(x).__name__ for x in entries))
        return f"{_article(name)} of {' and '.join(kinds[:2])}" if value else f"an empty {name}"
    return _article(name)


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


# ---- fields of configs


def plain(value: Any, hint: Any) -> Any:
    """Plain data for a type: where that is a tuple, a single value is a tuple of one, and a dict is one of pairs.

    Everything else stays as it is, to be checked when the config is made.
    """
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if origin is Annotated:
        return plain(value, args[0])
    if origin in (Union, types.UnionType):
        return _plain_option(value, args)
    if origin is tuple:
        return _plain_tuple(value, args)
    if origin is dict and isinstance(value, dict):
        return {key: plain(x, args[1]) for key, x in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return {key: plain(x, _hints(hint).get(key, Any)) for key, x in value.items()}
    return str(value) if hint is str and isinstance(value, PurePath) else value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _plain_option(value: Any, options: tuple) -> Any:
    """Of a type that is one of several; a single value becomes a tuple only where no option takes it as it is."""
    single = any(option in (int, float, str, bool) for option in options)
    if value is None or (single and not isinstance(value, list | tuple)):
        return value
    for option in options:  # a dict keeps what an option does not know
        value = plain(value, option)
    return value


def _plain_tuple(value: Any, args: tuple) -> Any:
    if args[-1:] != (Ellipsis,):
        if not isinstance(value, list | tuple) or len(value) != len(args):
            return value
        return tuple(plain(x, hint) for x, hint in zip(value, args, strict=True))
    if isinstance(value, dict) and get_origin(args[0]) is tuple:
        value = list(value.items())
    if isinstance(value, dict) or value is None:
        return value
    several = value if isinstance(value, list | tuple | set | typing.Iterator) else (value,)
    return tuple(plain(x, args[0]) for x in several)
