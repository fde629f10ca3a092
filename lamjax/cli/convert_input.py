"""`lamjax convert input.json config.yaml`: a DeePMD-kit training input as a config of `lamjax train`."""

import json
import os
from pathlib import Path

import yaml
from rich.markup import escape

from lamjax.checkpoints import write_atomically
from lamjax.interop.deepmd.inputs import Conversion, convert
from lamjax.reports import console
from lamjax.training.config import validate


def is_input(path: Path) -> bool:
    """True for a JSON object with `model` and `training`; told by content."""
    with open(path, "rb") as file:
        if not file.read(64).lstrip().startswith(b"{"):
            return False
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and {"model", "training"} <= content.keys()


def convert_input(source: Path, target: Path) -> None:
    """Write the config and print which keys of the input it does not carry over, and why.

    Paths of data are made to work from the present folder, whatever folder the input is in.
    """

    def locate(path: str) -> str:
        return path if os.path.isabs(path) else os.path.relpath(source.parent / path)

    converted = convert(json.loads(source.read_bytes()), locate)
    validate(converted.config, str(source))
    write_atomically(target, _text(converted, source).encode())
    for line in (*_dropped(converted), f"Wrote {target}. Next: lamjax train {target}"):
        console.print(escape(line), soft_wrap=True, highlight=False)


def _text(converted: Conversion, source: Path) -> str:
    """YAML with a comment that lists what was left out."""
    lines = [f"From {source.name}, a training input of DeePMD-kit. Paths are relative to the folder where lamjax runs."]
    content = yaml.safe_dump(converted.config, sort_keys=False, default_flow_style=None, width=118)
    return "".join(f"# {line}\n" for line in [*lines, *_dropped(converted)]) + content


def _dropped(converted: Conversion) -> list[str]:
    return (
        ["Not carried over:", *(f"  {key}: {reason}" for key, reason in converted.dropped)] if converted.dropped else []
    )
