"""Configs in files: YAML that holds what differs from defaults, changes like "steps=500", JSON, a schema."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.composer import ComposerError

from lamjax.arguments import plain
from lamjax.config import faults

Config = TypeVar("Config")
# keys that may change when a run is resumed
_HARMLESS = {"output", "print_every", "save_every", "keep", "patience", "plots", "tensorboard", "logger", "monitor"}


def read(path: str | Path, command: str = "lamjax train") -> dict[str, Any]:
    """The keys and values of a YAML (or JSON) file. Raises FileNotFoundError, or ValueError if it holds no such."""
    path, hint = Path(path), f"`{command} --template`"
    if not path.is_file():
        what = "a folder, not a config file" if path.is_dir() else "no such config file"
        raise FileNotFoundError(f"{path}: {what}. {hint} prints one to begin with.")
    try:
        text = path.read_text(encoding="utf-8")
        is_json = text.lstrip().startswith("{")  # in which tabs are spaces, as they are not in YAML
        content = yaml.load(text.replace("\t", " ") if is_json else text, _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file. A config is YAML, see {hint}.") from error
    except yaml.YAMLError as error:
        remedy = "\nIndent with spaces, not with tabs." if r"'\t'" in str(error) else ""
        raise ValueError(f"{path}: not a valid YAML file: {error}{remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, see {hint}.")
    return content


def validate(content: dict[str, Any], source: str, kind: type[Config]) -> Config:
    """The config of plain data; ValueError that begins with `source` and names every key that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(plain(content, kind))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in faults.lines(error, kind))
        raise ValueError(f"{source}: the config is not valid:\n{lines}") from error


def schema(kind: Any, title: str = "lamjax train") -> str:
    """The JSON schema of a config, with which an editor completes and checks YAML files."""
    content = _with_singles(TypeAdapter(kind).json_schema())
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **content})


def _with_singles(node: Any) -> Any:
    """The schema in which a single value stands for a list of one, as `validate` takes it."""
    if isinstance(node, list):
        return [_with_singles(x) for x in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_singles(x) for key, x in node.items()}
    if node.get("type") == "array" and isinstance(node.get("items"), dict) and "prefixItems" not in node:
        several = {key: node.pop(key) for key in ("type", "items")}
        return {"anyOf": [several, several["items"]], **node}
    return node


def differences(old: Config, new: Config) -> list[str]:
    """The settings that affect the course of a run and differ between two configs: "loss.limit_pref_f: 1.0 -> 2.0"."""
    a, b = (flat(json.loads(to_json(config))) for config in (old, new))
    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and key.partition(".")[0] not in _HARMLESS
    ]


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested dicts."""
    values = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping) and value
        values |= flat(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return values


def to_json(config: Config) -> str:
    """The whole config, defaults included, as JSON text."""
    return TypeAdapter(type(config)).dump_json(config, indent=1).decode()


def apply(content: dict[str, Any], change: str, option: str = "--set") -> None:
    """Set one dotted key; the value is read as YAML. `option` is what the user gave it with."""
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{option} takes key=value, for example schedule.start_lr=1e-4; got {change!r}.")
    *parents, last = key.strip().split(".")
    for name in parents:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise ValueError(f"{option} {change}: {name} is not a group of keys.")
    try:
        content[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", "") or str(error).splitlines()[-1].strip()
        raise ValueError(f"{option} {change}: the value is not YAML ({reason}). Quote it as one word.") from error


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, one laid over the other; where the `type` of a group changes, its other keys are dropped."""
    both_merged = dict(below)
    for key, value in above.items():
        old: Any = both_merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        same = both and value.get("type", old.get("type")) == old.get("type", value.get("type"))
        both_merged[key] = merged(old, value) if same else value
    return both_merged


class _Loader(yaml.SafeLoader):
    """YAML with numbers and truth values as in its version 1.2, and no key twice.

    In 1.1, PyYAML's, 1e-3 is a text, 010 is 8, 1:30 is 90, No (the element) is false and 2024-05-01 is a date.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A group of keys; ComposerError that names the line of a key that is there twice."""
        node, keys = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in keys:
                problem = f"the key {key.value!r} is there twice: keep one of them"
                raise ComposerError("in a group of keys", node.start_mark, problem, key.start_mark)
            keys.add(name)
        return node


_SCALARS = {
    "bool": (r"true|True|false|False", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\d[\d_]*\.\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_expression, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_expression})$"), list(_first))
