"""`lamjax train`: training on energies, forces and virials, from scratch or from a stored model."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from lamjax import pytree
from lamjax.cli import reading
from lamjax.cli.data import data_table
from lamjax.cli.final_report import at_end
from lamjax.cli.interrupted import resumable
from lamjax.cli.option_groups import with_groups
from lamjax.cli.processes import join
from lamjax.data import ReadOptions, n_batches
from lamjax.reports import bar, console, table, warnings_as_text
from lamjax.training import engine, labels, sharding
from lamjax.training.config import TEMPLATE, TrainConfig, parse
from lamjax.training.config import schema as config_schema
from lamjax.training.folder import check_sources
from lamjax.training.labels import WRITTEN
from lamjax.training.tasks import Task


@with_groups(options=reading.options)
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; see --template.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set schedule.start_lr=1e-4.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for states, tables, models.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state in the output folder.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print a config file with all keys and stop.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the config's JSON schema and stop.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of the first of several processes.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes train together.")] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, from 0.")] = None,
    *,
    options: ReadOptions,
) -> None:
    """Train on labels: from scratch (`model:` in the config) or from a stored model (`base:`).

    Writes states, lcurve.csv, config.json, facts.json, plots, report.html, best.lamjax and model.lamjax to the
    output folder. A
    killed run goes on with --resume, bit for bit. All devices that jax sees are used; on several machines start the
    same command on each with --coordinator, --processes and --process (--coordinator auto under SLURM or MPI).
    """
    if template or schema:
        print(TEMPLATE if template else config_schema(), end="")
        return
    if config is None:
        raise ValueError("Name a config file: lamjax train config.yaml. `lamjax train --template` prints one.")
    join(coordinator, processes, process)
    folder = [] if output is None else [f"output={json.dumps(str(output))}"]
    settings = parse(config, [*(set_ or ()), *folder, *reading.changes(options)])
    check_sources(settings, WRITTEN, [config], resume)
    run_config(settings, resume)
    if sharding.is_first():
        at_end(Path(settings.output))


def run_config(settings: TrainConfig, resume: bool = False) -> engine.Run:
    """Train to the end, saying in the first process what is done."""
    # x64 for sums of energies; the network runs in the config's precision
    with resumable(settings.output, locked=sharding.is_first()), jax.enable_x64(True):
        return _run(settings, resume)


def _run(settings: TrainConfig, resume: bool) -> engine.Run:
    console.quiet = not sharding.is_first()
    console.print(banner(settings.precision))
    with warnings_as_text():
        run = labels.prepare(settings, resume)
    _describe(run)
    with bar("training", settings.steps, run.done) as advance:
        for event in engine.events(run):
            match event:
                case engine.RunRecord():
                    advance(event.step)
            console.print(line(event, settings.steps), soft_wrap=True)
    return run


def line(event: Any, steps: int) -> str:
    """One event as one line of text."""
    match event:
        case engine.Compiled(n, shape, seconds, group):
            group_text = f" ({group})" if group else ""
            return f"program {n}{group_text}: {shape}, first step {seconds:.1f} s"
        case engine.Saved(path):
            return f"saved {path}"
        case engine.Stopped(step, best_step, best):
            return f"stopped at step {step}: no better validation than {best:.4g} (eV, Å) of step {best_step}"
    text = (
        f"step {event.step}/{steps}  lr {event.learning_rate:.2e}  loss {event.loss:.3e}  train {_errors(event.train)}"
    )
    if event.validation:
        text += f"  validation {_errors(event.validation)}"
    if math.isnan(event.remaining):
        return text
    text += f"  {event.structures:.3g} structures/s {event.atoms:.3g} atoms/s"
    if event.wait > 0.02:
        text += f" ({100 * event.wait:.0f} % of the time waiting for batches)"
    return f"{text}  left {_duration(event.remaining)}"


def _errors(errors: dict[str, float]) -> str:
    """RMSE of energy (meV/atom), forces (meV/Å) and stress (meV/Å³), task by task."""
    terms = {"rmse_e": ("E", "meV/atom"), "rmse_f": ("F", "meV/Å"), "rmse_s": ("S", "meV/Å³")}
    by_task: dict[str, list[str]] = {}
    for key, value in errors.items():
        kind, _, task = key.partition(":")
        if kind in terms:
            name, unit = terms[kind]
            by_task.setdefault(task, []).append(f"{name} {1000 * value:.4g} {unit}")
    return "; ".join(" ".join([*([task] if task else []), *parts]) for task, parts in by_task.items())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def banner(precision: str) -> str:
    devices = ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()}))
    return (
        f"lamjax {version('lamjax')}, jax {version('jax')}, Python {platform.python_version()}; "
        f"{jax.device_count()} x {devices}; {precision}, energies summed in float64"
    )


def _describe(run: engine.Run) -> None:
    """Print how many frames and parameters there are, and the shapes of arrays."""
    tasks, plan = run.data.tasks, run.data.plan
    sets = {f"{task.name} train".strip(): task.frames for task in tasks}
    sets |= {f"{task.name} validation".strip(): task.held_out for task in tasks if task.held_out}
    console.print(data_table(sets))
    sizes = [
        f"structures of {_range(b.least, b.n_atoms)} atoms, {'/'.join(map(str, b.capacities))} neighbours"
        for b in plan.buckets
    ]
    rows = [
        ("parameters", f"{pytree.n_parameters(run.state.params):,}"),
        ("elements", " ".join(run.potential.elements or ["all"])),
        ("head", ", ".join(_head(task) for task in tasks)),
        ("programs", f"{run.data.n_programs} for steps, {run.data.n_measured} for validation: {'; '.join(sizes)}"),
        ("work spent on padding", f"{100 * plan.waste:.1f} %"),
        ("batches per epoch", ", ".join(str(n_batches(task.train, task.batch_size)) for task in tasks)),
        ("devices", f"{jax.device_count()}, in {jax.process_count()} processes"),
        ("steps", f"{run.done} of {run.config.steps} done"),
    ]
    console.print(table("Run", ["", ""], rows))


def _range(least: int, most: int) -> str:
    return str(most) if least == most else f"{least} to {most}"


def _head(task: Task) -> str:
    return f"{task.potential.head} ({100 * task.probability:.3g} % of the steps)" if task.name else task.potential.head
