"""`lamjax finetune`: a stored model learns new labels or structures, and says what that cost it elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from lamjax import checkpoints
from lamjax.cli import reading
from lamjax.cli.finetune_structures import finetune_structures, rates
from lamjax.cli.train import run_config
from lamjax.data import Frame, files_of, open_frames
from lamjax.reports import console, table
from lamjax.training.config import apply, validate
from lamjax.training.forgetting import Forgetting, forgetting
from lamjax.training.setup import MODEL, WRITTEN, Run, check_sources
from lamjax.training.structures_config import TEMPLATE

REPORT = "forgetting.json"
LOSS = {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 100.0, "limit_pref_f": 10.0} | {
    "start_pref_v": 0.02,
    "limit_pref_v": 0.1,
}


ON_LABELS, ON_STRUCTURES = "Of --objective labels", "Of --objective structures"
# which options mean something for one objective only
LABELS_ONLY = {"source", "old", "new_share", "steps", "bias"}
STRUCTURES_ONLY = {
    "config",
    "loss",
    "adjoint",
    "steps_unrolled",
    "window",
    "variable_cell",
    "noise",
    "learn_minimiser",
    "replay_weight",
    "epochs",
    "batch_size",
    "hold_out",
    "group_by",
    "seed",
}


def _print_template(wanted: bool) -> None:
    if wanted:
        print(TEMPLATE, end="")
        raise typer.Exit()


def finetune(
    context: typer.Context,
    base: Annotated[Path, typer.Argument(help="small, a lamjax bundle or a DeePMD-kit model (.pt, .dp, .yaml).")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Labelled structures: extxyz, what ASE reads, DeePMD folders, h5. With --objective structures: "
            "relaxations: a file with all steps of each (.traj, OUTCAR, vasprun.xml), trajectories (relax_id, step), "
            "starts with final_positions, or pair_id and role."
        ),
    ],
    objective: Annotated[
        str, typer.Option(help="What is learned: labels (energies, forces) or structures (where they relax to).")
    ] = "labels",
    head: Annotated[
        str | None,
        typer.Option(help="The head that learns; a new name is added. Structures: needed if there are several."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help="A new head begins as this head, as their mean, or random.", rich_help_panel=ON_LABELS
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(help="Held-out frames or relaxations; else 10 % of the files.")
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(
            help="Earlier data that is trained on too, against forgetting: HEAD=FILE, with --objective structures FILE "
            "(energies, forces and stresses, also those of the relaxations themselves)."
        ),
    ] = None,
    old: Annotated[
        list[str] | None,
        typer.Option(
            help="HEAD=FILE of earlier data that is only measured before and after.", rich_help_panel=ON_LABELS
        ),
    ] = None,
    new_share: Annotated[
        float,
        typer.Option(help="With --replay: share of the steps that the new data get.", rich_help_panel=ON_LABELS),
    ] = 0.5,
    steps: Annotated[int, typer.Option(help="Updates.", rich_help_panel=ON_LABELS)] = 2000,
    lr: Annotated[
        float, typer.Option(help="First learning rate; it falls to a hundredth (structures: a twentieth).")
    ] = 5e-4,
    bias: Annotated[
        str,
        typer.Option(
            help="Energy per element: change (fit of label - prediction), set, keep.", rich_help_panel=ON_LABELS
        ),
    ] = "change",
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON with any key of --template; options go first.", rich_help_panel=ON_STRUCTURES),
    ] = None,
    template: Annotated[
        bool,
        typer.Option(
            "--template",
            help="Print a config with all keys and stop.",
            is_eager=True,
            callback=_print_template,
            rich_help_panel=ON_STRUCTURES,
        ),
    ] = False,
    loss: Annotated[
        str,
        typer.Option(
            help="structure: relax and compare; force: zero force at the target; newton: one Newton step from it.",
            rich_help_panel=ON_STRUCTURES,
        ),
    ] = "structure",
    adjoint: Annotated[
        str,
        typer.Option(
            help="How the relaxation is differentiated: unrolled or until_converged (backpropagation through its "
            "steps), implicit (at the minimum), hybrid (some steps, then the minimum).",
            rich_help_panel=ON_STRUCTURES,
        ),
    ] = "unrolled",
    steps_unrolled: Annotated[
        int | None, typer.Option(help="Steps of --adjoint unrolled; 50 without.", rich_help_panel=ON_STRUCTURES)
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Steps of --adjoint hybrid; 20 without.", rich_help_panel=ON_STRUCTURES)
    ] = None,
    variable_cell: Annotated[
        bool, typer.Option("--variable-cell", help="Cells relax too.", rich_help_panel=ON_STRUCTURES)
    ] = False,
    noise: Annotated[
        float,
        typer.Option(help="Å by which starts are moved at random, anew every epoch.", rich_help_panel=ON_STRUCTURES),
    ] = 0.0,
    learn_minimiser: Annotated[
        bool,
        typer.Option("--learn-minimiser", help="Learn step sizes of the minimiser too.", rich_help_panel=ON_STRUCTURES),
    ] = False,
    replay_weight: Annotated[
        float, typer.Option(help="Weight of the loss of the replayed labels.", rich_help_panel=ON_STRUCTURES)
    ] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the relaxations.", rich_help_panel=ON_STRUCTURES)] = 10,
    batch_size: Annotated[int, typer.Option(help="Structures of a step.", rich_help_panel=ON_STRUCTURES)] = 4,
    hold_out: Annotated[
        float, typer.Option(help="Share held out where there is no --validation.", rich_help_panel=ON_STRUCTURES)
    ] = 0.1,
    group_by: Annotated[
        str | None,
        typer.Option(help="Key of the starts' info whose groups are held out whole.", rich_help_panel=ON_STRUCTURES),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the order, and of what is held out.", rich_help_panel=ON_STRUCTURES)
    ] = 0,
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
    energy_key: reading.EnergyKey = None,
    forces_key: reading.ForcesKey = None,
    stress_key: reading.StressKey = None,
    virial_key: reading.VirialKey = None,
    elements: reading.Elements = None,
) -> None:
    """Fine-tune one head of a model on new labels (a new head is added to it), or on where structures relax to.

    Labels: the energy per element is refitted first. At the end, forgetting.json and a table tell the errors of every
    old head before and after: on its data where --replay or --old names them, else how far its predictions for the new
    structures moved.

    Structures: starts are relaxed, and the distance of the ends from the targets is differentiated back into the
    model. Held-out starts are relaxed to convergence before and after every epoch (validation.csv, structures.csv,
    structures.png); best.lamjax has the least median structure error of these, the model before training included. A
    table tells errors before and after, and what it cost in forces. Pairs that cannot be used are named and left out.

    The config that was made of these options is config.json in the output folder.
    """
    given = _given(context, objective)
    options = reading.options(energy_key, forces_key, stress_key, virial_key, elements)
    if objective == "structures":
        given["set_"] = [*(set_ or ()), *reading.changes(options)]
        finetune_structures(base, files, given)
        return
    if head is None:
        raise ValueError(f"--head names the head that learns: one of {', '.join(_heads(base))}, or a new one.")
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
    content["tasks"][head] |= reading.keys(options)
    for change in set_ or ():
        apply(content, change)
    settings = validate(content, "lamjax finetune")
    named = _pairs(old, "--old")
    reads = [*settings.files, *(path for paths in named.values() for path in paths)]
    check_sources(settings, (*WRITTEN, REPORT), files_of(reads), resume)
    measured = _old(base, named)
    run = run_config(settings, resume)
    with jax.enable_x64(True):
        lines = _measure(run, base, Path(run.config.output) / MODEL, head, measured)
    path = Path(run.config.output) / REPORT
    path.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    report(lines)
    console.print(f"{path}\n{Path(run.config.output) / MODEL}")


def _given(context: typer.Context, objective: str) -> dict[str, Any]:
    """The options that were given; ValueError for those that mean nothing for the objective."""
    foreign = {"labels": STRUCTURES_ONLY, "structures": LABELS_ONLY}
    if objective not in foreign:
        raise ValueError(f"--objective {objective}: unknown; known are {', '.join(foreign)}.")
    found = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    if wrong := sorted(flags[name] for name in found.keys() & foreign[objective]):
        (other,) = foreign.keys() - {objective}
        raise ValueError(f"{', '.join(wrong)}: only with --objective {other}, this one is {objective}.")
    return found


def _heads(base: Path) -> tuple[str, ...]:
    return checkpoints.read(base).config.head_names


def make_config(
    base, files, head, source, validation, replay, new_share, steps, lr, bias, freeze, rate, output
) -> dict[str, Any]:
    """The training config of a fine-tuning, as plain data."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
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
        "rates": rates(rate or ()),
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


def _old(base: Path, files: dict[str, list[str]]) -> dict[str, Sequence[Frame]]:
    """The frames of --old for each head of the base: read, and found wrong, before anything is trained."""
    stored = checkpoints.read(base).config
    if unknown := sorted(files.keys() - set(stored.head_names)):
        raise ValueError(f"--old {unknown[0]}: the base has the heads {', '.join(stored.head_names)}.")
    if missing := [path for paths in files.values() for path in paths if not Path(path).exists()]:
        raise FileNotFoundError(f"--old {missing[0]}: no such file.")
    return {name: open_frames(paths, stored.elements) for name, paths in files.items()}


def _measure(run: Run, base: Path, tuned: Path, head: str, old: dict[str, Sequence[Frame]]) -> list[Forgetting]:
    dtype = np.dtype(run.config.precision)
    before, after = (checkpoints.load(path, dtype=dtype) for path in (base, tuned))
    tasks = {task.potential.head: task.held_out or task.frames for task in run.tasks}
    sets = {name: frames for name, frames in tasks.items() if name in before[0].config.head_names}
    return forgetting(before, after, sets | old, tasks[head], run.config.precision)


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
