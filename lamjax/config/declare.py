"""Configs: frozen dataclasses whose fields are checked when they are made, in Python as in a file, and documented."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs

from lamjax.arguments import ArgumentError, plain
from lamjax.config import faults

Kind = TypeVar("Kind")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def configuration(kind: type[Kind]) -> type[Kind]:
    """A frozen dataclass whose values are checked against the types and bounds of its fields; unknown keys are errors.

    `Annotated[int, Field(ge=1, description="...")]` states the bounds and the meaning of a field; the meanings become
    part of the docstring. A list stands for a tuple, and a single value for a tuple of one.
    Raises ArgumentError, a ValueError and TypeError, that names every field that is wrong.
    """
    setattr(kind, "_plain_values", model_validator(mode="before")(_plain_values))  # noqa: B010
    # JSON, in which configs are kept beside their weights, has neither NaN nor infinity
    rules = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    made = dataclass(frozen=True, config=rules)(kind)
    setattr(made, "__init__", _telling(made))  # noqa: B010
    made.__doc__ = f"{inspect.cleandoc(kind.__doc__ or kind.__name__)}\n\n{fields_text(made)}"
    return made


def or_own(check: Callable[[Any], Any]) -> WrapValidator:
    """For a field that also takes an object of the user's own, for which `check` raises nothing; files hold no such."""

    def validate(value: Any, known: Callable[[Any], Any]) -> Any:
        try:
            return known(value)
        except ValidationError:
            if isinstance(value, dict):
                raise
        try:
            check(value)
        except TypeError as error:
            raise ArgumentError(str(error)) from error  # a ValueError, to which pydantic adds the name of the field
        return value

    return WrapValidator(validate)


@classmethod
def _plain_values(cls: type, values: Any) -> Any:
    """The values that a script or file gives, converted to plain data of the types of the fields."""
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls) if not field.kw_only]
    if isinstance(values, ArgsKwargs):
        given = values.kwargs or {}
        if len(values.args) > len(names) or set(names[: len(values.args)]) & given.keys():
            return values  # pydantic says that these are too many
        given = {**dict(zip(names, values.args, strict=False)), **given}
        return ArgsKwargs((), {key: plain(value, hints.get(key, Any)) for key, value in given.items()})
    if isinstance(values, dict):
        return {key: plain(value, hints.get(key, Any)) for key, value in values.items()}
    return values


def _telling(kind: type) -> Callable[..., None]:
    """The constructor, with messages that name each key as those about a file do."""
    check = kind.__init__

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except ValidationError as error:
            first, *others = error.errors()
            cause = first.get("ctx", {}).get("error")
            if not others and not first["loc"] and isinstance(cause, ValueError):
                raise cause from None  # of the class itself
            raise ArgumentError(f"{kind.__name__}: " + "\n".join(faults.lines(error, kind))) from None

    parameters = [p.replace(annotation=_bare(p.annotation)) for p in inspect.signature(kind).parameters.values()]
    setattr(kind, "__signature__", inspect.Signature(parameters))  # noqa: B010
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010
    return __init__


def fields_text(kind: type) -> str:
    """Name, type, default and meaning of each field, a line each."""
    types, hints = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    lines = [_line(field, types[field.name], description(hints[field.name])) for field in dataclasses.fields(kind)]
    return "\n".join(["Fields:", *(f"    {line}" for line in lines)])


def description(hint: Any) -> str:
    """The meaning that a field states; empty if none."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((note.description for note in notes if isinstance(note, FieldInfo) and note.description), "")


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _line(field: dataclasses.Field, kind: Any, meaning: str) -> str:
    name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
    default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    return f"{field.name}: {name}{default}" + (f" -- {meaning}" if meaning else "")
