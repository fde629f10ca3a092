"""`lamjax finetune-structures`: a stored model learns where structures relax to."""

import math
from pathlib import Path
from typing import Annotated

import typer

from lamjax import pytree
from lamjax.cli import judged, tuning
from lamjax.cli.final_report import at_end
from lamjax.cli.keys import KeyCommand, strings
from lamjax.cli.options import Model
from lamjax.cli.train import line
from lamjax.cli.tuning import ConfigFile, Head, Keys, Output, Resume, template_option
from lamjax.reports import console, table
from lamjax.training import engine, records, structures
from lamjax.training.folder import BEST, MODEL, check_sources
from lamjax.training.structures import WRITTEN, StructureTuneConfig, read_config
from lamjax.training.structures_config import TEMPLATE

COMMAND_CLASS = KeyCommand


def finetune_structures(
    base: Model,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Relaxations: a file with all steps of each (.traj, OUTCAR, vasprun.xml), trajectories (relax_id, "
            "step), starts with final_positions, or pair_id and role."
        ),
    ],
    head: Head = None,
    adjoint: Annotated[
        str | None,
        typer.Option(
            help="How the relaxation is differentiated: unrolled (50 steps) or until_converged (backpropagation "
            "through its steps), implicit (at the minimum), hybrid (some steps, then the minimum)."
        ),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled frames that are trained on too, against forgetting; also the relaxations'."),
    ] = None,
    config: ConfigFile = None,
    template: Annotated[bool, template_option(TEMPLATE)] = False,
    set_: Keys = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a model on where structures relax to.

    Starts are relaxed, and the distance of the ends from the targets is differentiated back into the model. Every key
    of a config is an option as well; the most wanted are --epochs (10), --batch-size (4), --schedule.start_lr (5e-4),
    --objective.type (structure; force: no force at the target; newton: one Newton step from it), --variable-cell,
    --validation FILE (else --hold-out 0.1, whole groups with --group-by KEY), --noise, --learn-minimiser,
    --replay.weight, --freeze descriptor, --rates.descriptor 0.1, --energy-key and its like.

    Held-out starts are relaxed to convergence before and after every epoch (validation.csv, structures.csv,
    structures.png); best.lamjax has the least median structure error of these, the model before training included. A
    table tells errors before and after, and what it cost in forces. Pairs that cannot be used are named and left out.
    The config that was made of these options is config.json in the output folder.
    """
    content = tuning.content_of(base, head, output, replay) | {"pairs": strings(files)}
    content |= {"objective": {"type": "structure", "relax": {"adjoint": {"type": adjoint}}}} if adjoint else {}
    settings = read_config(config, content, set_ or ())
    if config is not None:
        check_sources(settings, WRITTEN, [config], resume)
    tuning.train(settings, lambda: structures.prepare(settings, resume), _describe, text_of, _report)


def _describe(run: engine.Run) -> None:
    """Print how many structures and parameters there are, and the shapes of arrays."""
    config, sets, packed = run.config, run.data.sets, run.data.packed
    shapes = [
        f"{len(members)} of up to {shape.n_atoms} atoms, {'/'.join(map(str, shape.capacities))} neighbours"
        for shape, members in zip(packed.shapes, packed.members, strict=True)
    ]
    rows = [
        ("relaxations to learn from", len(sets.train)),
        ("held-out relaxations", len(sets.validation)),
        ("labelled frames", ", ".join(f"{len(f)} ({name})" for name, f in sets.frames.items()) or "none"),
        ("replayed frames", len(sets.replay) or "none"),
        ("objective", _objective_name(config)),
        ("parameters", f"{pytree.n_parameters(run.state.params):,}"),
        ("head", run.potential.head),
        ("programs", f"{len(shapes)}: {'; '.join(shapes)}"),
        ("steps", f"{run.done} of {run.settings.steps} done, {run.objective.per_epoch} an epoch"),
    ]
    console.print(table("Fine-tuning on structures", ["", ""], rows))


def _objective_name(config: StructureTuneConfig) -> str:
    relax, name = getattr(config.objective, "relax", None), config.objective.type
    if relax is not None:
        adjoint = relax.adjoint
        n = getattr(adjoint, "steps", None) or getattr(adjoint, "window", None)
        name += f", {adjoint.type}" + (f" ({n} steps)" if n else "") + f", {relax.minimiser.type}"
    return name + (", variable cell" if config.variable_cell else ", fixed cell")


def text_of(event: engine.Event, run: engine.Run, before: dict[str, float] | None = None) -> str:
    """One event as text, empty for saved files. `before` holds the errors before training."""
    match event:
        case engine.RunRecord(step) if event.validation:
            return _judged(event, before)
        case engine.RunRecord(step):
            dq = f"  Dq {event.train['dq_mean']:.4g} amu^½ Å" if "dq_mean" in event.train else ""
            return f"step {step}/{run.settings.steps}  loss {event.loss:.4g}{dq}"
        case engine.Epoch(number, _, rows):
            means, counts = records.means(rows, structures.COUNTS)
            parts = [f"epoch {number}/{run.config.epochs}  loss {means['loss']:.4g}", *_means(means)]
            parts += [f"\n  {n} structures {structures.COUNTS[key]}" for key, n in counts.items()]
            return "  ".join(parts)
        case engine.Widened(_, shapes):
            return (
                f"neighbours were missing on the way: from now on there is room for {'; '.join(shapes)} neighbours, "
                "which means to compile anew"
            )
        case engine.Stopped(step, best_step, best):
            return f"stopped at step {step}: no better median Dq than {best:.4g} amu^½ Å of step {best_step}"
        case engine.Compiled():
            return line(event, run.settings.steps)
    return ""


def _judged(record: engine.RunRecord, before: dict[str, float] | None) -> str:
    """A line with the errors of the held-out structures."""
    errors, step = record.validation, record.step
    was = "" if before is None or step == 0 else f" (before {before['dq_median']:.4g})"
    share = "" if step == 0 else f"{errors['improved']:.0%} improved, "
    basin = "" if math.isnan(errors["in_basin"]) else f"{errors['in_basin']:.0%} in the right basin, "
    return (
        f"held out, step {step}: median Dq {errors['dq_median']:.4g} amu^½ Å{was}, {share}{basin}"
        f"{errors['converged']:.0%} converged" + ("  (best so far)" if record.best and step else "")
    )


def _means(means: dict[str, float]) -> list[str]:
    known = {"dq_mean": "mean Dq {:.4g} amu^½ Å", "newton_dq": "Newton Dq {:.4g} amu^½ Å"}
    known |= {"force_rms": "force at the target {:.3g} eV/Å", "replay_rmse_f": "replayed forces {:.3g} eV/Å"}
    known |= {"converged": "{:.0%} converged", "grad_norm": "gradient {:.3g}"}
    minimiser = [f"{key.removeprefix('minimiser/')} {x:.4g}" for key, x in means.items() if "minimiser/" in key]
    return [text.format(means[key]) for key, text in known.items() if key in means] + minimiser


def _report(run: engine.Run) -> None:
    """Print the errors before and after, and the paths of all output files."""
    config, output = run.config, Path(run.config.output)
    console.print(table("Held-out structures, relaxed to convergence", *judged.of_structures(output, config)))
    tuning.tell_best(structures.validations(output), "structures", "median Dq")
    console.print(f"{output / BEST}\n{output / MODEL}\n{output / structures.PLOT}", soft_wrap=True)
    at_end(output)
