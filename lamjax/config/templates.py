"""A config as a YAML file to begin with: every key, its value, and what it means as a comment."""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter

from lamjax.config.declare import description

COLUMN = 35  # where comments begin
WIDTH = 120


def template(config: Any, header: str, instead: Mapping[str, str] | None = None) -> str:
    """The config as YAML below the comment `header`; of the fields in `instead` the text that stands there.

    Keys without a default come first, then those of the class before those that it inherits.
    """
    instead = instead or {}
    lines = [f"# {line}" for line in header.splitlines()]
    for field in _ordered(type(config)):
        lines += instead[field].splitlines() if field in instead else _entry(config, field, 0)
    return "\n".join(lines) + "\n"


def _entry(config: Any, field: str, indent: int) -> Iterator[str]:
    """One field: on a line of its own, or a group whose keys are on lines of their own where it is long."""
    value, meaning = getattr(config, field), description(get_type_hints(type(config), include_extras=True)[field])
    start = " " * indent + f"{field}: "
    text = _flow(value)
    if dataclasses.is_dataclass(value) and len(start + text) > WIDTH - COLUMN:
        yield from _commented(start.rstrip(), meaning)
        for name in _ordered(type(value)):
            yield from _entry(value, name, indent + 2)
    else:
        yield from _commented(start + text, meaning)


def _commented(text: str, meaning: str) -> Iterator[str]:
    column = max(COLUMN, len(text) + 2 if len(text) + 2 < WIDTH // 2 else COLUMN)
    notes = textwrap.wrap(meaning, WIDTH - column - 2)
    if notes and len(text) + 2 > column:  # no room beside it
        yield from (f"{' ' * (len(text) - len(text.lstrip()))}# {note}" for note in notes)
        yield text
        return
    yield f"{text.ljust(column)}# {notes[0]}" if notes else text
    yield from (f"{' ' * column}# {note}" for note in notes[1:])


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    plain = TypeAdapter(type(value)).dump_python(value, mode="json")
    text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _ordered(kind: type) -> list[str]:
    """The fields of a config: its type, what has no default, its own, what it inherits."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    owner = {name: depth for depth, one in enumerate(kind.__mro__) for name in inspect.get_annotations(one)}

    def rank(name: str) -> tuple[bool, bool, int]:
        missing = dataclasses.MISSING
        has_default = fields[name].default is not missing or fields[name].default_factory is not missing
        return name != "type", has_default, owner[name] if has_default else 0

    return sorted(fields, key=rank)
