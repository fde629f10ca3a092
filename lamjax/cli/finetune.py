"""`lamjax finetune`: a stored model learns a new data set, and says what that cost it elsewhere."""

import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from lamjax import checkpoints
from lamjax.cli.train import run_config
from lamjax.data import open_frames
from lamjax.reports import console, table
from lamjax.training.config import apply, validate
from lamjax.training.forgetting import Forgetting, forgetting
from lamjax.training.setup import MODEL, Run

LOSS = {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 100.0, "limit_pref_f": 10.0} | {
    "start_pref_v": 0.02,
    "limit_pref_v": 0.1,
}


def finetune(
    base: Annotated[Path, typer.Argument(help="A lamjax bundle or a DeePMD-kit model (.pt, .dp, .yaml).")],
    files: Annotated[
        list[Path], typer.Argument(help="Labelled structures: extxyz, what ASE reads, DeePMD folders, h5.")
    ],
    head: Annotated[str, typer.Option(help="The head that learns; a new name is added.")],
    source: Annotated[
        str | None, typer.Option("--from", help="A new head begins as this head, as their mean, or random.")
    ] = None,
    validation: Annotated[list[Path] | None, typer.Option(help="Held-out frames; else 10 % of the files.")] = None,
    replay: Annotated[
        list[str] | None, typer.Option(help="HEAD=FILE of earlier data that is trained on too, against forgetting.")
    ] = None,
    old: Annotated[
        list[str] | None, typer.Option(help="HEAD=FILE of earlier data that is only measured before and after.")
    ] = None,
    new_share: Annotated[float, typer.Option(help="With --replay: share of the steps that the new data get.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Updates.")] = 2000,
    lr: Annotated[float, typer.Option(help="First learning rate; it falls to a hundredth.")] = 5e-4,
    bias: Annotated[
        str, typer.Option(help="Energy per element: change (fit of label - prediction), set, keep.")
    ] = "change",
    freeze: Annotated[
        list[str] | None, typer.Option(help="A part that stays as it is, for example descriptor.")
    ] = None,
    rate: Annotated[list[str] | None, typer.Option(help="PART=FACTOR of the learning rate: descriptor=0.1.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for states, curve, plots, report and model.")] = Path(
        "finetuned"
    ),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key of a config: --set batch_size=4.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state in the output folder.")] = False,
) -> None:
    """Fine-tune one head of a model on new data; a new head is added to it.

    The energy per element is refitted first. At the end, forgetting.json and a table tell the errors of every old
    head before and after: on its data where --replay or --old names them, else how far its predictions for the new
    structures moved. The config that was made of these options is config.json in the output folder.
    """
    content = make_config(
        base,
        files,
        head,
        source,
        validation,
        _pairs(replay, "--replay"),
        new_share,
        steps,
        lr,
        bias,
        freeze,
        rate,
        output,
    )
    for change in set_ or ():
        apply(content, change)
    measured = _pairs(old, "--old")
    run = run_config(validate(content, "lamjax finetune"), resume)
    with jax.enable_x64(True):
        lines = _measure(run, base, Path(run.config.output) / MODEL, head, measured)
    path = Path(run.config.output) / "forgetting.json"
    path.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    report(lines)
    console.print(f"{path}\n{Path(run.config.output) / MODEL}")


def make_config(
    base, files, head, source, validation, replay, new_share, steps, lr, bias, freeze, rate, output
) -> dict[str, Any]:
    """The training config of a fine-tuning, as plain data."""
    known = checkpoints.read(base).config.head_names
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
    new: dict[str, Any] = {"train": _strings(files), "validation": _strings(validation or ())}
    others = {name: {"train": _strings(paths), "bias": "keep"} for name, paths in replay.items()}
    if others:
        new["probability"] = new_share
        for task in others.values():
            task["probability"] = (1 - new_share) / len(others)
    return {
        "base": str(base),
        "add_heads": {} if head in known else {head: source},
        "tasks": {head: new, **others},
        "hold_out": 0.0 if validation else 0.1,
        "bias": bias,
        "loss": LOSS,
        "schedule": {"type": "cosine", "start_lr": lr, "stop_lr": lr / 100, "warmup_steps": steps // 20},
        "optimizer": {"name": "adam", "max_norm": 5.0},
        "steps": steps,
        "ema_decay": float(np.clip(1 - 20 / steps, 0.5, 0.999)),
        "freeze": list(freeze or ()),
        "rates": {part: float(factor) for part, (factor,) in _pairs(rate, "--rate").items()},
        "output": str(output),
        "print_every": max(1, steps // 20),
        "validate_every": max(1, steps // 10),
        "save_every": max(1, steps // 10),
    }


def report(lines: list[Forgetting]) -> None:
    """The table of errors before and after."""
    rows = [
        (
            line.head + ("" if line.labelled else " *"),
            line.n,
            *("-" if x is None else x for x in line[3:]),
        )
        for line in lines
    ]
    columns = ["head", "frames", "E before", "E after", "F before", "F after"]
    console.print(table("What fine-tuning cost: RMSE, E in meV/atom (shifted per element), F in meV/Å", columns, rows))
    if any(not line.labelled for line in lines):
        console.print("* no data of this head: RMS change of its predictions for the new structures")


def _measure(run: Run, base: Path, tuned: Path, head: str, measured: dict[str, list[str]]) -> list[Forgetting]:
    dtype = np.dtype(run.config.precision)
    before, after = (checkpoints.load(path, dtype=dtype) for path in (base, tuned))
    tasks = {task.potential.head: task.held_out or task.frames for task in run.tasks}
    sets = {name: frames for name, frames in tasks.items() if name in before[0].config.head_names}
    sets |= {name: open_frames(paths, before[0].elements) for name, paths in measured.items()}
    if unknown := sorted(sets.keys() - set(before[0].config.head_names)):
        raise ValueError(f"--old {unknown[0]}: the base has the heads {', '.join(before[0].config.head_names)}.")
    return forgetting(before, after, sets, tasks[head], run.config.precision)


def _pairs(options: list[str] | None, name: str) -> dict[str, list[str]]:
    """{"a": ["x", "y"]} of ["a=x", "a=y"]."""
    found: dict[str, list[str]] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{name} takes NAME=VALUE, got {option!r}.")
        found.setdefault(key, []).append(value)
    return found


def _strings(paths) -> list[str]:
    return [str(path) for path in paths]
