"""`lamjax relax`: structures from files, relaxed many at a time."""

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from rich.markup import escape

from lamjax import checkpoints, data, units
from lamjax.cli import reading
from lamjax.cli import relax_records as records
from lamjax.cli.processes import join
from lamjax.cli.relax_records import labelled as labelled
from lamjax.relaxation import CellConfig, RelaxConfig, stream
from lamjax.reports import console, files, plots, progress, table
from lamjax.system import System


class Keep(StrEnum):
    """What of the cell stays."""

    SHAPE = "shape"
    VOLUME = "volume"


class Precision(StrEnum):
    """Of the network."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Start(NamedTuple):
    """A structure of a file."""

    source: str  # "file#frame"
    number: int  # among all that could be read
    system: System
    fixed: np.ndarray | None
    info: dict[str, Any]


class Told(NamedTuple):
    """What the table counts of a structure that was written."""

    converged: bool
    finite: bool
    n_steps: int
    widened: bool
    truncated: bool


class Share(NamedTuple):
    """Which structures are this process's, and where they are written."""

    process: int
    processes: int
    out: Path


def relax(
    model: Annotated[Path, typer.Argument(help="A lamjax bundle or a DeePMD-kit model (.pt, .dp, .yaml).")],
    structures: Annotated[list[Path], typer.Argument(help="Files that ASE reads; every frame is relaxed.")],
    out: Annotated[Path, typer.Option(help="Relaxed structures, extxyz, in the order in which they finish.")] = Path(
        "relaxed.extxyz"
    ),
    fmax: Annotated[float, typer.Option(help="Converged when no atom (nor the cell) feels more (eV/Å).")] = 0.02,
    max_steps: Annotated[int, typer.Option(help="FIRE steps at most.")] = 500,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too; components as --keep says.")] = False,
    pressure: Annotated[float, typer.Option(help="On a relaxing cell (GPa).")] = 0.0,
    keep: Annotated[Keep | None, typer.Option(help="What of a relaxing cell stays as it is.")] = None,
    slots: Annotated[int | None, typer.Option(help="Structures side by side; default: by their sizes.", min=1)] = None,
    max_programs: Annotated[int, typer.Option(help="Shapes that are compiled, at most.", min=1)] = 4,
    head: Annotated[str | None, typer.Option(help="Head of a model that has several.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the network; positions are float64.")] = Precision.FLOAT32,
    resume: Annotated[bool, typer.Option("--resume", help="Relax only what is not yet in the output.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of the first process, or auto: see above.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes share the structures.", min=1)] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, from 0.", min=0)] = None,
    elements: reading.Elements = None,
) -> None:
    """Relax every structure; energy, forces, stress, converged, finite, n_steps and fmax are written with each.

    Also truncated (there were more neighbours than the model looks at, and it kept the nearest), how far the atom that
    went farthest is from its start (moved, Å), and with --cell the volume_change. A picture of the steps and of both
    lies beside the output (relaxed.png).

    Results are appended as they finish, so that a killed run loses nothing that was done: --resume goes on. A file or
    frame that cannot be read or relaxed is reported, and the others go on. FixAtoms and FixCartesian are respected.

    Of several processes (--processes 4 --process 0, and so on) each relaxes every 4th structure on its own and writes
    relaxed.0.extxyz, and so on; they need not know of each other. --coordinator auto takes both numbers from SLURM or
    MPI.
    """
    config = RelaxConfig(fmax=fmax, max_steps=max_steps, cell=_cell(cell, pressure, keep))
    share = _share(out, coordinator, processes, process)
    began = time.monotonic()
    with files.alone(share.out), jax.enable_x64(True):  # for positions and sums of energies
        done = _done(share, out, resume)
        potential, params = checkpoints.load(model, head, np.dtype(precision.value))
        starts, failures = _read(structures, potential.elements, reading.options(elements=elements))
        mine = [s for s in starts[share.process :: share.processes] if s.source not in done]
        told, failed = _relax(potential, params, mine, config, share.out, slots, max_programs)
    failures += failed
    if not told and not done:
        raise ValueError(data.pairs.listed("Nothing was relaxed", failures or ["There are no structures."]))
    lost = len(mine) + len(failures) - len(failed) - len(told)
    console.print(_report(told, lost, len(done), time.monotonic() - began, config, share.out))
    _plot(share.out, config)
    if failures:
        console.print(escape(data.pairs.listed("Failed", failures)), soft_wrap=True)


def _cell(relaxes: bool, pressure: float, keep: Keep | None) -> CellConfig | None:
    if not relaxes and (pressure or keep):
        raise ValueError("--pressure and --keep are about a relaxing cell: add --cell, or leave them out.")
    return CellConfig(pressure * units.GPA, keep="nothing" if keep is None else keep.value) if relaxes else None


def _share(out: Path, coordinator: str | None, processes: int | None, process: int | None) -> Share:
    """The part of this process; ValueError for numbers that do not fit."""
    if coordinator is not None:
        join(coordinator, processes, process)
        processes, process = jax.process_count(), jax.process_index()
    if (processes is None) != (process is None) or (processes or 1) <= (process or 0):
        raise ValueError(f"--processes {processes} --process {process}: give both; processes are numbered from 0.")
    if processes is None or processes == 1:
        return Share(0, 1, out)
    return Share(process, processes, records.part(out, process))


def _done(share: Share, out: Path, resume: bool) -> set[str]:
    """Sources of the structures that are in the output already; those of other processes are left as they are."""
    if not resume and share.out.exists() and share.out.stat().st_size:
        raise ValueError(f"{share.out} exists. Go on with --resume, name another --out, or remove it.")
    share.out.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        return set()
    found = [info for path in records.parts(out) for info in records.known(path, cut=path == share.out)]
    return {str(info["source"]) for info in found}


def _read(paths: Sequence[Path], elements, options: data.ReadOptions) -> tuple[list[Start], list[str]]:
    """All structures that can be read, and what is wrong with the others."""
    if len(set(paths)) < len(paths):
        raise ValueError("A file is named twice. Name every file once.")
    starts: list[Start] = []
    failures: list[str] = []
    for path in paths:
        try:
            told = {"on_error": lambda e: failures.append(str(e)), "on_remark": reading.tell}
            for frame in data.iterate(path, elements=elements, options=options, **told):
                name, number = frame.source.rsplit(" frame ", 1)
                source, fixed = f"{path.parent / name}#{number}", frame.info.get("fixed")
                starts.append(Start(source, len(starts), frame.system, fixed, frame.info))
        except (ValueError, OSError) as error:
            failures.append(str(error))
    ignored = sorted({kind for s in starts for kind in s.info.get("other_constraints", "").split(", ") if kind})
    if ignored:
        console.print(f"[yellow]Constraints that are not respected: {', '.join(ignored)}[/]")
    return starts, failures


def _relax(potential, params, starts: Sequence[Start], config, out: Path, slots, max_programs):
    """Written one by one; what is told of each, and what is wrong with those that failed."""
    told: list[Told] = []
    failures: list[str] = []
    systems, fixed = [s.system for s in starts], [s.fixed for s in starts]
    found = stream(potential, params, systems, config, fixed=fixed, slots=slots, max_programs=max_programs)
    with open(out, "a") as file:
        for outcome in progress(found, "relaxing", len(starts)) if starts else ():
            start, relaxed = starts[outcome.number], outcome.relaxation
            if outcome.error is not None:
                failures.append(f"{start.source}: {outcome.error}")
            if relaxed is None:
                continue
            info = start.info | {"source": start.source, "number": start.number}
            records.append(
                file, labelled(relaxed, info | records.changes(start.system, relaxed.system, config.cell is not None))
            )
            kept = bool(relaxed.converged), bool(relaxed.finite), int(relaxed.n_steps)
            told.append(Told(*kept, widened=outcome.n_widened > 0, truncated=bool(relaxed.truncated)))
    return told, failures


def _report(told: Sequence[Told], lost: int, n_before: int, seconds: float, config: RelaxConfig, out: Path):
    steps = [one.n_steps for one in told]
    n_widened, n_truncated = (sum(getattr(one, name) for one in told) for name in ("widened", "truncated"))
    rows = [
        ("relaxed", len(told)),
        ("converged", sum(one.converged for one in told)),
        ("not converged", sum(one.finite and not one.converged for one in told)),
        ("not finite", sum(not one.finite for one in told)),
        ("failed before the first step", lost),
        *([("went on in wider arrays, with more neighbours", n_widened)] if n_widened else []),
        *([("had neighbours beyond the model's sel", n_truncated)] if n_truncated else []),
        *([("done before", n_before)] if n_before else []),
        *([("steps, median and most", f"{np.median(steps):.0f}, {max(steps)}")] if told else []),
        *([("time per structure", f"{seconds / len(told):.2g} s")] if told else []),
        ("written to", f"{out}, {out.with_suffix('.png').name}"),
    ]
    what = "fixed cell" if config.cell is None else "variable cell"
    return table(f"Relaxation at {what} to {config.fmax:g} eV/Å", ("what", "value"), rows)


def _plot(out: Path, config: RelaxConfig) -> None:
    """The picture of all that is in the output, an earlier part of the run included."""
    found = [info for info in records.known(out) if info["finite"]]
    panels = {"moved": "way of the atom that went farthest (Å)", "volume_change": "volume change (%)"}
    factor = {"moved": 1, "volume_change": 100}
    values = {
        label: [factor[key] * info[key] for info in found]
        for key, label in panels.items()
        if found and all(key in info for info in found)
    }
    if found:
        steps, converged = ([info[key] for info in found] for key in ("n_steps", "converged"))
        title = f"{len(found)} relaxations to {config.fmax:g} eV/Å, {sum(converged)} converged"
        plots.relaxations(out.with_suffix(".png"), steps, converged, values, title)
