"""`lamjax relax`: structures from files, relaxed many at a time."""

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from jaxtyping import PyTree
from rich.markup import escape

from lamjax import checkpoints, data, files, units
from lamjax.cli import reading
from lamjax.cli import relax_records as records
from lamjax.cli.final_report import at_end
from lamjax.cli.option_groups import with_groups
from lamjax.cli.options import Head, Model, NetworkPrecision, Precision
from lamjax.cli.processes import join
from lamjax.cli.reading import Start
from lamjax.cli.relax_records import labelled as labelled
from lamjax.data.pairs import listed
from lamjax.potential import Potential
from lamjax.relaxation import CellConfig, FireConfig, LBFGSConfig, RelaxConfig, stream
from lamjax.reports import console, outputs, plots, progress, table


class Keep(StrEnum):
    """The property of a relaxing cell that is held constant."""

    SHAPE = "shape"
    VOLUME = "volume"


class Method(StrEnum):
    """The minimiser."""

    FIRE = "fire"
    LBFGS = "lbfgs"

    @property
    def config(self) -> FireConfig | LBFGSConfig:
        """Its settings."""
        return {Method.FIRE: FireConfig, Method.LBFGS: LBFGSConfig}[self]()


class RelaxedSummary(NamedTuple):
    """Flags and number of steps of a structure that was written, for the final table."""

    converged: bool
    finite: bool
    n_steps: int
    widened: bool
    truncated: bool


class Results(NamedTuple):
    """Outcome of a run: summaries of written structures, and errors."""

    summaries: list[RelaxedSummary]
    errors: dict[str, str]  # source -> why it failed
    is_whole: bool  # not interrupted


class Share(NamedTuple):
    """Which structures are this process's, and where they are written."""

    process: int
    processes: int
    out: Path


def relaxation(
    fmax: Annotated[float, typer.Option(help="Converged when no atom (nor the cell) feels more (eV/Å).")] = 0.02,
    max_steps: Annotated[int, typer.Option(help="Steps at most.")] = 500,
    minimiser: Annotated[
        Method, typer.Option(help="Of steps downhill: lbfgs needs fewer of them than fire.")
    ] = Method.FIRE,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too; components as --keep says.")] = False,
    pressure: Annotated[float, typer.Option(help="On a relaxing cell (GPa).")] = 0.0,
    keep: Annotated[Keep | None, typer.Option(help="What of a relaxing cell stays as it is.")] = None,
) -> RelaxConfig:
    """The config of the relaxation; ValueError for options that do not fit together."""
    if not cell and (pressure or keep):
        raise ValueError("--pressure and --keep are about a relaxing cell: add --cell, or leave them out.")
    degrees = CellConfig(pressure * units.GPA, keep="nothing" if keep is None else keep.value) if cell else None
    return RelaxConfig(fmax=fmax, max_steps=max_steps, cell=degrees, minimiser=minimiser.config)


def numbered(
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of the first process, or auto: see above.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes share the structures.", min=1)] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, from 0.", min=0)] = None,
) -> tuple[int, int]:
    """The number of this process and how many there are; ValueError for numbers that do not fit."""
    if coordinator is not None:
        join(coordinator, processes, process)
        processes, process = jax.process_count(), jax.process_index()
    if (processes is None) != (process is None) or (processes or 1) <= (process or 0):
        raise ValueError(f"--processes {processes} --process {process}: give both; processes are numbered from 0.")
    return process or 0, processes or 1


RelaxedFile = Annotated[
    Path,
    typer.Option("--output", "-o", "--out", help="Relaxed structures, extxyz, at the end in the order of the files."),
]


@with_groups(config=relaxation, place=numbered)
def relax(
    model: Model,
    structures: Annotated[list[Path], typer.Argument(help="Files that ASE reads; every frame is relaxed.")],
    out: RelaxedFile = Path("relaxed.extxyz"),
    *,
    config: RelaxConfig,
    slots: Annotated[int | None, typer.Option(help="Structures side by side; default: by their sizes.", min=1)] = None,
    max_programs: Annotated[int, typer.Option(help="Shapes that are compiled, at most.", min=1)] = 4,
    head: Head = None,
    precision: NetworkPrecision = Precision.FLOAT32,
    resume: Annotated[bool, typer.Option("--resume", help="Relax only what is not yet in the output.")] = False,
    place: tuple[int, int],
    elements: reading.Elements = None,
) -> None:
    """Relax every structure; energy, forces, stress, converged, finite, n_steps and fmax are written with each.

    Also truncated (there were more neighbours than the model looks at, and it kept the nearest), how far the atom that
    went farthest is from its start (moved, Å), and with --cell the volume_change. Beside the output lie a table with a
    line for each structure (relaxed.csv), a picture of steps and changes (relaxed.png), and a page with all of it, on
    which structures can be turned (relaxed.html).

    Results are appended as they finish, so that a killed run loses nothing that was done: --resume goes on. At the end
    they stand in the order of the structures in their files, frame k of the output for structure k: for one that could
    not be relaxed its start stands there, with failed=T, the reason as error, and no energy. A file that cannot be read
    is reported, and the others go on. FixAtoms and FixCartesian are respected.

    Of several processes (--processes 4 --process 0, and so on) each relaxes every 4th structure on its own and writes
    relaxed.0.extxyz, and so on; they need not know of each other. --coordinator auto takes both numbers from SLURM or
    MPI. When all have ended, --resume without these options puts everything together in relaxed.extxyz.
    """
    outputs.check_ending(out, (".extxyz", ".xyz"), "relaxed structures are")
    share = Share(*place, out if place[1] == 1 else records.part(out, place[0]))
    outputs.claim(_written(share.out), [model, *data.files_of(structures)], "--output")
    began = time.monotonic()
    with files.alone(share.out), jax.enable_x64(True):  # for positions and sums of energies
        done = _done(share, out, resume)
        potential, params = checkpoints.load(model, head, np.dtype(precision.value))
        starts, unread = _read(structures, potential.elements, reading.options(elements=elements))
        # structures relaxed by another process are in its file; a single process puts all into one
        mine = [s for s in starts[share.process :: share.processes] if not _elsewhere(share, done.get(s.source))]
        left = [s for s in mine if s.source not in done]
        made = {"relaxed_by": records.model_name(potential, params)}
        made |= {"relaxed_to": records.settings_text(config, precision.value)}
        for start in (s for s in starts if s.source in done):
            records.check_made(done[start.source], made | _name(start))
        results = _relax(potential, params, left, config, share.out, slots, max_programs, made)
        with files.uninterrupted():
            failures = unread + [f"{source}: {error}" for source, error in results.errors.items()]
            if not results.summaries and not done:
                _nothing(results, failures)
            _sort(share, mine, done, results)
            _plot(share.out, config)
    if not results.is_whole:
        console.print(f"Interrupted: {share.out} holds what was done, --resume goes on.", soft_wrap=True)
        raise KeyboardInterrupt
    lost = len(unread) + len(left) - len(results.summaries)
    console.print(_report(results.summaries, lost, len(done), time.monotonic() - began, config, share.out))
    at_end(share.out, {start.source: start.start for start in mine})
    if failures:
        console.print(escape(listed("Failed", failures)), soft_wrap=True)


def _nothing(results: Results, failures: list[str]) -> None:
    """Raise what ends a run in which no structure was relaxed."""
    if not results.is_whole:
        raise KeyboardInterrupt
    raise ValueError(listed("Nothing was relaxed", failures or ["There are no structures."]))


def _written(out: Path) -> list[Path]:
    """The files of a run."""
    return [out, *(out.with_suffix(suffix) for suffix in (".csv", ".png", ".html"))]


def _elsewhere(share: Share, place: records.Place | None) -> bool:
    return share.processes > 1 and place is not None and place.path != share.out


def _sort(share: Share, mine: Sequence[Start], done: dict[str, records.Place], results: Results) -> None:
    """The output in the order of the structures, and its table."""
    places = {source: place for source, place in done.items() if not _elsewhere(share, place)}
    places |= records.relaxed([share.out])
    sources = {start.source: start.number for start in mine}
    failed = {
        start.source: records.unrelaxed(start.start, _facts(start), results.errors[start.source])
        for start in mine
        if start.source in results.errors and start.source not in places
    }
    records.sort(share.out, sources, places, failed)
    records.write_table(share.out.with_suffix(".csv"), sources, places, results.errors)


def _done(share: Share, out: Path, resume: bool) -> dict[str, records.Place]:
    """The records of structures that were relaxed before, by this or another process."""
    if not resume and share.out.exists() and share.out.stat().st_size:
        raise ValueError(f"{share.out} exists. Go on with --resume, name another --output, or remove it.")
    return records.relaxed(records.parts(out), cut=share.out) if resume else {}


def _facts(start: Start) -> dict[str, Any]:
    """The info that a record of this structure has in any case."""
    kept = {key: value for key, value in start.info.items() if key not in records.OWN}
    return kept | {"source": start.source, "number": start.number}


def _name(start: Start) -> dict[str, str]:
    """A digest of the start, to recognise it in a later run; nothing for one that cannot be relaxed."""
    return {} if start.error is not None else {"relaxed_from": records.start_name(start.start, start.info.get("fixed"))}


def _read(
    paths: Sequence[Path], elements: Sequence[str] | None, options: data.ReadOptions
) -> tuple[list[Start], list[str]]:
    """All structures of the files, those that cannot be relaxed with the reason; and what could not be read."""
    if len(set(paths)) < len(paths):
        raise ValueError("A file is named twice. Name every file once.")
    starts, unread = reading.structures(paths, elements, options)
    ignored = sorted({kind for s in starts for kind in s.info.get("other_constraints", "").split(", ") if kind})
    if ignored:
        console.print(f"[yellow]Constraints that are not respected: {', '.join(ignored)}[/]")
    return starts, unread


def _relax(
    potential: Potential,
    params: PyTree,
    starts: Sequence[Start],
    config: Any,
    out: Path,
    slots: Any,
    max_programs: Any,
    made: Any,
) -> Results:
    """Written one by one with how they were `made`, to the end or until it is interrupted."""
    results = Results([], {start.source: start.error for start in starts if start.error is not None}, True)
    starts = [start for start in starts if start.error is None]
    systems, fixed = [s.start for s in starts], [s.info.get("fixed") for s in starts]
    moving = stream(potential, params, systems, config, fixed=fixed, slots=slots, max_programs=max_programs)
    with open(out, "a") as file:
        try:
            for outcome in progress(moving, "relaxing", len(starts)) if starts else ():
                start, relaxed = starts[outcome.number], outcome.relaxation
                if outcome.error is not None:
                    results.errors[start.source] = outcome.error
                if relaxed is None:
                    continue
                moved = records.changes(start.start, relaxed.system, config.cell is not None)
                info = _facts(start) | made | _name(start) | moved
                info |= {} if outcome.error is None else {"error": outcome.error}
                with files.uninterrupted():
                    records.append(file, labelled(relaxed, info))
                    flags = bool(relaxed.converged), bool(relaxed.finite), int(relaxed.n_steps)
                    flags += outcome.n_widened > 0, bool(relaxed.truncated)
                    results.summaries.append(RelaxedSummary(*flags))
        except KeyboardInterrupt:
            console.print("Interrupted: what is done is being put in order.")
            moving.close()
            return results._replace(is_whole=False)
    return results


def _report(
    summaries: Sequence[RelaxedSummary], lost: int, n_before: int, seconds: float, config: RelaxConfig, out: Path
) -> Any:
    steps = [one.n_steps for one in summaries]
    n_widened, n_truncated = (sum(getattr(one, name) for one in summaries) for name in ("widened", "truncated"))
    rows = [
        ("relaxed", len(summaries)),
        ("converged", sum(one.converged for one in summaries)),
        ("not converged", sum(one.finite and not one.converged for one in summaries)),
        ("not finite", sum(not one.finite for one in summaries)),
        ("failed before the first step", lost),
        *([("went on in wider arrays, with more neighbours", n_widened)] if n_widened else []),
        *([("had neighbours beyond the model's sel", n_truncated)] if n_truncated else []),
        *([("done before", n_before)] if n_before else []),
        *([("steps, median and most", f"{np.median(steps):.0f}, {max(steps)}")] if summaries else []),
        *([("time per structure", f"{seconds / len(summaries):.2g} s")] if summaries else []),
        ("written to", ", ".join([str(out), *(path.name for path in _written(out)[1:])])),
    ]
    what = "fixed cell" if config.cell is None else "variable cell"
    return table(f"Relaxation at {what} to {config.fmax:g} eV/Å", ("what", "value"), rows)


def _plot(out: Path, config: RelaxConfig) -> None:
    """The picture of all that is in the output, an earlier part of the run included."""
    infos = [place.info for place in records.known(out) if place.info["finite"]]
    if infos:
        steps, converged = ([info[key] for info in infos] for key in ("n_steps", "converged"))
        title = f"{len(infos)} relaxations to {config.fmax:g} eV/Å, {sum(converged)} converged"
        plots.relaxations(out.with_suffix(".png"), steps, converged, records.panels(infos), title)
