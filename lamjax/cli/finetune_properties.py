"""`lamjax finetune-properties`: a stored model learns properties of relaxed crystals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lamjax import checkpoints, pytree
from lamjax.cli import finetune, judged, tuning
from lamjax.cli.final_report import at_end
from lamjax.cli.judged import names
from lamjax.cli.keys import KeyCommand, strings
from lamjax.cli.options import Model
from lamjax.cli.train import line
from lamjax.cli.tuning import ConfigFile, Head, Keys, Output, Resume, template_option
from lamjax.evaluation.retention import forgetting
from lamjax.losses import TargetConfig
from lamjax.losses.property_targets import UNITS
from lamjax.reports import console, table
from lamjax.training import engine, properties, records
from lamjax.training.folder import BEST, MODEL, check_sources
from lamjax.training.properties import PropertyTuneConfig, read_config
from lamjax.training.properties_config import TEMPLATE, cost

COMMAND_CLASS = KeyCommand
REPORT = finetune.REPORT


def finetune_properties(
    base: Model,
    files: Annotated[
        list[Path],
        typer.Argument(help="Crystals (extxyz) with targets in their info: bulk_modulus_GPa=98.0, volume_A3=40.9."),
    ],
    head: Head = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A property to learn, again for more; with its unit as bulk_modulus=kbar. Default: all."),
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(help="Labelled frames that are trained on too, against forgetting.")
    ] = None,
    config: ConfigFile = None,
    template: Annotated[bool, template_option(TEMPLATE)] = False,
    set_: Keys = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a model on properties of relaxed crystals: moduli, volumes, heat capacities, force constants.

    Crystals are relaxed in every step, and the errors of their properties are differentiated back into the model, the
    response of the relaxed structure included. Properties and units (in the keys, or as --target NAME=UNIT):
    bulk_modulus, shear_modulus, young_modulus, elastic_tensor (GPa, kbar, eV_A3), volume, volume_per_atom (A3), lengths
    (A), density (g_cm3, kg_m3), heat_capacity of the cell and heat_capacity_per_atom (J_molK, eV_K); force_constants
    names a file FORCE_CONSTANTS of phonopy, with supercell="2 2 2" beside it.

    Every key of a config is an option as well; the most wanted are --epochs (10), --batch-size (4), --schedule.start_lr
    (2e-4), --validation FILE (else --hold-out 0.2, whole groups with --group-by elements), --phonons.temperature 300,
    --replay.weight, --freeze descriptor.

    Held-out crystals are relaxed before and after every epoch (validation.csv, properties.csv, properties.png);
    best.lamjax has the least median error of these, the model before training included. What did not converge or is
    unstable is flagged there. forgetting.json and a table tell what it cost in forces. Molecules and slabs have none of
    these properties: they are named and left out.
    """
    content = tuning.content_of(base, head, output, replay) | {"crystals": strings(files)}
    content |= {"targets": [_target(one) for one in target]} if target else {}
    settings = read_config(config, content, set_ or ())
    if config is not None:
        check_sources(settings, (*properties.WRITTEN, REPORT), [config], resume)
    tuning.train(settings, lambda: properties.prepare(settings, resume), _describe, text_of, _report)


def _target(text: str) -> dict[str, Any]:
    """The target NAME or NAME=UNIT as keys of a config; the scale is a tenth of the median target, found later."""
    name, _, unit = text.partition("=")
    spelled = {suffix: unit for unit, suffix in properties.SUFFIXES.items()}
    return {"name": name, "scale": None} | ({"unit": spelled.get(unit, unit)} if unit else {})


def _describe(run: engine.Run) -> None:
    """Print how many crystals and parameters there are, and the shapes of arrays."""
    config, data = run.config, run.data
    sets, shapes = data.sets, [part.rows.start.numbers.shape[1] for part in data.train]
    with_constants = [sum(c.constants is not None for c in some) for some in (sets.train, sets.validation)]
    targets = [f"{t.name} (an error of {t.scale:.4g} {next(iter(UNITS[t.name]))} counts 1)" for t in _targets(run)]
    rows = [
        ("crystals to learn from", len(sets.train)),
        ("held-out crystals", len(sets.validation)),
        ("targets", "; ".join(targets) or "none"),
        ("with force constants", f"{with_constants[0]}, held out {with_constants[1]}"),
        ("replayed frames", len(sets.replay) or "none"),
        ("of a crystal is computed", cost(t.name for t in _targets(run))),
        ("parameters", f"{pytree.n_parameters(run.state.params):,}"),
        ("head", run.potential.head),
        ("programs", f"{len(shapes)}: crystals of up to {', '.join(map(str, shapes))} atoms"),
        ("steps", f"{run.done} of {run.settings.steps} done, {run.objective.per_epoch} an epoch"),
    ]
    console.print(table("Fine-tuning on properties", ["", ""], rows))
    if not config.replay:
        console.print("Without --replay nothing holds forces elsewhere: look at the table at the end.", style="dim")


def _targets(run: engine.Run) -> Sequence[TargetConfig]:
    return () if run.data.sets.loss is None else run.data.sets.loss.targets


def text_of(event: engine.Event, run: engine.Run, before: dict[str, float] | None = None) -> str:
    """One event as text, empty for saved files. `before` holds the errors before training."""
    match event:
        case engine.RunRecord(step) if event.validation:
            best = "  (best so far)" if event.best and step else ""
            return f"held out, step {step}: {_errors(event.validation, before if step else None)}{best}"
        case engine.RunRecord(step):
            return f"step {step}/{run.settings.steps}  loss {event.loss:.4g}  {_errors(event.train)}"
        case engine.Epoch(number, _, rows):
            means, counts = records.means(rows, properties.COUNTS)
            parts = [f"epoch {number}/{run.config.epochs}  loss {means['loss']:.4g}  {_errors(means)}"]
            return "".join([*parts, *(f"\n  {n} crystals {properties.COUNTS[key]}" for key, n in counts.items())])
        case engine.Stopped(step, best_step, best):
            return f"stopped at step {step}: no smaller error than {best:.4g} of step {best_step}"
        case engine.Compiled():
            return line(event, run.settings.steps)
    return ""


def _errors(numbers: dict[str, float], before: dict[str, float] | None = None) -> str:
    """Errors in words; of those before, where they are given."""
    parts = []
    for key, text in names(numbers).items():
        was = "" if before is None or key not in before else f" (before {before[key]:.4g})"
        parts.append(f"{text} {numbers[key]:.4g}{was}")
    for key, text in (("converged", "converged"), ("unstable", "unstable")):
        parts += [f"{numbers[key]:.0%} {text}"] if key in numbers else []
    return ", ".join(parts)


def _report(run: engine.Run) -> None:
    """Print the errors before and after, and the paths of all output files."""
    config, output = run.config, Path(run.config.output)
    console.print(table("Held-out crystals, relaxed", *judged.of_crystals(output)))
    console.print("Means are over crystals that converged and are stable.", style="dim")
    tuning.tell_best(properties.validations(output), "crystals", "error")
    lines = _forgetting(run, config, output)
    checkpoints.write_atomically(output / REPORT, (json.dumps([x._asdict() for x in lines], indent=1) + "\n").encode())
    finetune.report(lines)
    console.print(
        "\n".join(str(output / name) for name in (BEST, MODEL, properties.PROPERTIES, REPORT)), soft_wrap=True
    )
    at_end(output)


def _forgetting(run: engine.Run, config: PropertyTuneConfig, output: Path) -> list:
    """Errors of the heads on the replayed frames before and with the best model, else how far predictions moved."""
    dtype, sets = np.dtype(config.precision), run.data.sets
    before, after = (checkpoints.load(path, dtype=dtype) for path in (config.base, output / BEST))
    head = (config.replay.head if config.replay else None) or run.potential.head
    own = {head: sets.replay} if len(sets.replay) else {}
    return forgetting(before, after, own, [c.frame for c in sets.train], config.precision)
