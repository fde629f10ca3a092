"""`lamjax finetune`: a stored model learns new labels, and says what that cost it elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from lamjax import checkpoints
from lamjax.cli.final_report import at_end
from lamjax.cli.keys import KeyCommand, strings
from lamjax.cli.options import Model
from lamjax.cli.train import run_config
from lamjax.config import merged
from lamjax.data import Frame, files_of, open_frames
from lamjax.evaluation.retention import COLUMNS, Forgetting, forgetting
from lamjax.reports import console, table
from lamjax.training.config import KEYS, apply, read, validate
from lamjax.training.engine import Run
from lamjax.training.folder import MODEL, check_sources
from lamjax.training.labels import WRITTEN

COMMAND_CLASS = KeyCommand
REPORT = "forgetting.json"
OF_THE_TASK = ("validation", "type_map", *KEYS)  # keys that are meant for the new data alone
LOSS = {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 100.0, "limit_pref_f": 10.0} | {
    "start_pref_v": 0.02,
    "limit_pref_v": 0.1,
}

Labelled = Annotated[
    list[Path], typer.Argument(help="Labelled structures: extxyz, what ASE reads, DeePMD folders, h5.")
]


def finetune(
    base: Model,
    files: Labelled,
    head: Annotated[str | None, typer.Option(help="The head that learns; a new name is added.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="A new head begins as this head, as their mean, or random.")
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(
            help="HEAD=FILE of earlier data that is trained on too, against forgetting: in half of the steps."
        ),
    ] = None,
    old: Annotated[
        list[str] | None, typer.Option(help="HEAD=FILE of earlier data that is only measured before and after.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON with any key of `lamjax train --template`; options go first.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of a config: --set steps=500, or just --steps 500.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for states, curve, plots, report and model.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state in the output folder.")] = False,
) -> None:
    """Fine-tune one head of a model on new labels; a new head is added to it.

    Every key of a config is an option as well; the most wanted are --steps (2000), --schedule.start_lr (5e-4, and it
    falls to a hundredth), --validation FILE (else 10 % are held out), --freeze descriptor, --rates.descriptor 0.1,
    --bias (change, set, keep), --new-share (of the steps, with --replay), --energy-key and its like.

    The energy per element is refitted first. At the end, forgetting.json and a table tell the errors of every old head
    before and after: on its data where --replay or --old names them, else how far its predictions for the new
    structures moved. The config that was made of these options is config.json in the output folder.
    """
    own = {} if config is None else read(config)
    for change in set_ or ():
        apply(own, change)
    own |= {} if output is None else {"output": str(output)}
    if "objective" in own:
        raise ValueError("Structures are learned by a command of their own: lamjax finetune-structures MODEL FILES.")
    if head is None:
        raise ValueError(f"--head names the head that learns: one of {', '.join(_heads(base))}, or a new one.")
    content = make_config(base, files, head, source, _pairs(replay, "--replay"), own)
    settings = validate(content, "lamjax finetune")
    named = _pairs(old, "--old")
    reads = [*settings.files, *(path for paths in named.values() for path in paths), *([config] if config else [])]
    check_sources(settings, (*WRITTEN, REPORT), files_of(reads), resume)
    measured = _old(base, named)
    run = run_config(settings, resume)
    with jax.enable_x64(True):
        lines = _measure(run, base, Path(run.config.output) / MODEL, head, measured)
    path = Path(run.config.output) / REPORT
    path.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    report(lines)
    at_end(Path(run.config.output))
    console.print(f"{path}\n{Path(run.config.output) / MODEL}")


def _heads(base: Path) -> tuple[str, ...]:
    return checkpoints.read(base).config.head_names


def make_config(
    base: Path, files: Sequence[Path], head: str, source: str | None, replay: dict[str, list[str]], own: dict[str, Any]
) -> dict[str, Any]:
    """The training config of a fine-tuning, as plain data: `own` keys above what the number of steps and heads say."""
    own = dict(own)
    steps = own.setdefault("steps", 2000)
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    n_steps = steps if isinstance(steps, int) else 2000  # anything else is refused by `validate`
    known = _heads(base)
    _check_heads(base, known, head, source, replay)
    share = own.pop("new_share", 0.5)
    new: dict[str, Any] = {"train": strings(files)} | {key: own.pop(key) for key in OF_THE_TASK if key in own}
    others = {name: {"train": strings(paths), "bias": "keep"} for name, paths in replay.items()}
    if others:
        new["probability"] = share
        for task in others.values():
            task["probability"] = (1 - share) / len(others)
    schedule = own.get("schedule")
    lr = schedule.get("start_lr", 5e-4) if isinstance(schedule, dict) else 5e-4
    every = max(1, n_steps // 10)
    content = {
        "base": str(base),
        "add_heads": {} if head in known else {head: source},
        "tasks": {head: new, **others},
        "hold_out": 0.0 if new.get("validation") else 0.1,
        "output": "finetuned",
        "loss": LOSS,
        "schedule": {"type": "cosine", "start_lr": lr, "stop_lr": lr / 100, "warmup_steps": n_steps // 20},
        "optimizer": {"name": "adam", "max_norm": 5.0},
        "ema_decay": float(np.clip(1 - 20 / n_steps, 0.5, 0.999)),
        "print_every": max(1, n_steps // 20),
        "validate_every": every,
        "save_every": every,
    }
    return merged(content, own)


def _check_heads(base: Path, known: tuple[str, ...], head: str, source: str | None, replay: dict) -> None:
    """ValueError for heads that contradict those of the base."""
    if head in known and source is not None:
        raise ValueError(
            f"--from {source}: {base} has the head {head!r} already. Leave --from out, or name a new head."
        )
    if head not in known and source is None:
        raise ValueError(
            f"{base} has no head {head!r}; it has {', '.join(known)}. Name one of them, or say what the new one begins "
            "as: --from random, --from mean, or --from and one of these."
        )
    if wrong := sorted(replay.keys() - set(known) | (replay.keys() & {head})):
        raise ValueError(f"--replay {wrong[0]}: name another head of the model, one of {', '.join(known)}.")


def report(lines: list[Forgetting]) -> None:
    """The table of errors before and after."""
    title = "What fine-tuning cost: RMSE, E in meV/atom (shifted per element), F in meV/Å"
    console.print(table(title, COLUMNS, [line.cells for line in lines]))
    if any(not line.labelled for line in lines):
        console.print("* no data of this head: RMS change of its predictions for the new structures")


def _old(base: Path, files: dict[str, list[str]]) -> dict[str, Sequence[Frame]]:
    """The frames of --old for each head of the base, read and checked before training starts."""
    stored = checkpoints.read(base).config
    if unknown := sorted(files.keys() - set(stored.head_names)):
        raise ValueError(f"--old {unknown[0]}: the base has the heads {', '.join(stored.head_names)}.")
    if missing := [path for paths in files.values() for path in paths if not Path(path).exists()]:
        raise FileNotFoundError(f"--old {missing[0]}: no such file.")
    return {name: open_frames(paths, stored.elements) for name, paths in files.items()}


def _measure(run: Run, base: Path, tuned: Path, head: str, old: dict[str, Sequence[Frame]]) -> list[Forgetting]:
    dtype = np.dtype(run.config.precision)
    before, after = (checkpoints.load(path, dtype=dtype) for path in (base, tuned))
    tasks = {task.potential.head: task.held_out or task.frames for task in run.data.tasks}
    sets = {name: frames for name, frames in tasks.items() if name in before[0].config.head_names}
    return forgetting(before, after, sets | old, tasks[head], run.config.precision)


def _pairs(options: list[str] | None, name: str) -> dict[str, list[str]]:
    """{"a": ["x", "y"]} of ["a=x", "a=y"]."""
    by_name: dict[str, list[str]] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{name} takes NAME=VALUE, got {option!r}.")
        by_name.setdefault(key, []).append(value)
    return by_name
