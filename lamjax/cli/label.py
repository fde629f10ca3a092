"""`lamjax label`: energies, forces and stresses for structures, from a model or a calculator."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.markup import escape

from lamjax import data, distillation, files
from lamjax.cli.labeller import HELP, OPTION_HELP, labeller_config
from lamjax.cli.options import Head, LabellerPrecision, Structures
from lamjax.data.pairs import listed
from lamjax.distillation import CalculatorConfig
from lamjax.distillation.labelling import together
from lamjax.reports import bar, console, outputs, table

ENDINGS = (".h5", ".hdf5", ".extxyz", ".xyz")
SECONDS = 10.0  # between two lines where there is no terminal
BESIDE = (".partial", ".partial.json", ".failed.extxyz")
NAMED = 5  # reasons that are printed


def label(
    structures: Structures,
    labeller: Annotated[str, typer.Option(help=HELP)],
    out: Annotated[
        Path, typer.Option("--output", "-o", "--out", help="The labelled set: .h5 (packed, for training), or .extxyz.")
    ],
    option: Annotated[list[str] | None, typer.Option(help=OPTION_HELP)] = None,
    head: Head = None,
    precision: LabellerPrecision = None,
    reuse: Annotated[
        bool | None, typer.Option(help="One calculator for many frames; by default if it is imported.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was killed.")] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="With --resume: leave out the structure in which the run was killed.")
    ] = False,
) -> None:
    """Label structures: energy (of which the forces are the derivative), forces, and stress where all is periodic.

    A calculation that crashes, or gives what is no number, costs its frame: it is written with the reason to
    OUT.failed.extxyz, and counted. Labels that the structures had are left out, and every frame says who labelled it
    (labelled_by), so that labels of two levels of theory are not mixed unawares.

    Each answer is on disk (OUT.partial) before the next is asked for. A run that was killed goes on with --resume, and
    its set is the same to the last bit: the labels are those that `lamjax distill` would ask for.

    A calculator named as package.module:factory runs that package's code; it is imported because you name it here, and
    never because a file says so. An imported calculator is made once and reused, after a comparison with a new one.
    """
    config = labeller_config(labeller, option or (), head, None if precision is None else precision.value)
    if reuse is not None:
        if not isinstance(config, CalculatorConfig):
            raise ValueError(f"--reuse and --no-reuse are for calculators; {labeller} is a model file.")
        config = dataclasses.replace(config, reuse=reuse)
    if skip and not resume:
        raise ValueError("--skip leaves out the structure in which an earlier run was killed: it needs --resume.")
    claim(out, [*structures, labeller], ENDINGS, "labelled sets are")
    began = time.monotonic()
    with files.alone(out), jax.enable_x64(True):  # for positions and sums of energies
        frames, wrong = distillation.read_structures(structures)
        if not len(frames):
            raise ValueError(listed("No structure could be read", wrong or ["The files are empty."]))
        made = distillation.open_labeller(config)
        written = _run(distillation.label_set(made, frames, out, resume, skip), len(frames), together(made))
    _report(written, wrong, out, time.monotonic() - began)


def claim(out: Path, inputs: Sequence[Path | str | None], endings: Sequence[str], what: str) -> None:
    """Make sure, before any work, that an output and the files beside it can be written and are no inputs."""
    outputs.check_ending(out, endings, what)
    beside = (out.with_name(f"{out.name}{ending}") for ending in BESIDE)
    given = [path for path in map(Path, filter(None, inputs)) if path.exists()]
    outputs.claim([out, *beside], data.files_of(given), "--output")


def _run(steps: Any, total: int, at_once: int = 1) -> distillation.Written:
    """Label all frames under a progress bar, which moves when as many as are labelled together are done."""
    n_failed = 0
    with bar("labelling", total, interval=SECONDS) as advance:
        for event in steps:
            if isinstance(event, distillation.Written):
                return event
            n_failed += event.reason is not None
            if event.done % at_once == 0 or event.done == total:
                advance(event.done, f"{n_failed} without a label" if n_failed else "")
    raise AssertionError("label_set ends with what it has written")


def _report(written: distillation.Written, wrong: Sequence[str], out: Path, seconds: float) -> None:
    n_failed = sum(written.failures.values())
    rows = [
        ("labelled", written.n_frames),
        ("with a stress", f"{written.n_stress} of {written.n_periodic} periodic in three directions"),
        ("without a label", n_failed),
        *([("not readable", len(wrong))] if wrong else []),
        ("time (s)", seconds),
        ("written to", f"{out}" + (f", {written.failed}" if written.failed else "")),
    ]
    console.print(table("Labels", ("what", "value"), rows))
    if written.n_stress < written.n_periodic:
        console.print("[yellow]The labeller has no stress for some frames: nothing is learned of it from them.[/]")
    for reason, n in written.failures.most_common(NAMED):
        console.print(f"  {n} without a label: {escape(reason)}", soft_wrap=True, style="dim")
    if wrong:
        console.print(escape(listed("Not readable, left out", list(wrong))), soft_wrap=True)
