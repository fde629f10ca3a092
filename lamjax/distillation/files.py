"""Files of a round: frames and facts, each written as a whole or not at all."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase

from lamjax import checkpoints

EXPLORED, SELECTED, PARTIAL, LABELLED = "explored.extxyz", "selected.extxyz", "labelled.partial", "labelled.extxyz"
STATES, ROUND, LEARNING = "states", "round.json", "learning.json"


def write_frames(path: Path, frames: Sequence[ase.Atoms]) -> None:
    """extxyz; no frames make an empty file."""
    import ase.io

    text = io.StringIO()
    if frames:
        ase.io.write(text, list(frames), format="extxyz")
    checkpoints.write_atomically(path, text.getvalue().encode())


def read_frames(path: Path) -> list[ase.Atoms]:
    """The frames that `write_frames` wrote."""
    import ase.io

    return list(ase.io.iread(path, ":", format="extxyz")) if path.stat().st_size else []


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """JSON."""
    checkpoints.write_atomically(path, json.dumps(facts, indent=1, ensure_ascii=False).encode())


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `write_facts` wrote; empty if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def partial(out: Path) -> Path:
    """The file OUT.partial, which holds the finished part of an output."""
    return out.with_name(f"{out.name}.partial")


def partial_facts(out: Path) -> Path:
    """The file OUT.partial.json: settings that must be the same when the output is continued."""
    return out.with_name(f"{out.name}.partial.json")


def student(folder: Path, member: int) -> Path:
    """The file of a member of the committee."""
    return folder / f"student-{member}.lamjax"


def remove(folder: Path) -> None:
    """The folder and all in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)
