"""`lamjax data ...`: what is in a data set."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from lamjax import checkpoints
from lamjax.cli import reading
from lamjax.cli.option_groups import with_groups
from lamjax.data import Audit, Finding, Frame, ReadOptions, Remark, audit, files_of, iterate, summarize
from lamjax.frames import LABELS
from lamjax.reports import console, outputs, progress, table
from lamjax.reports.console import FittingTable


@with_groups(options=reading.options)
def check(
    files: Annotated[list[Path], typer.Argument(help="extxyz, plain or .gz, what ASE reads, DeePMD folders, .h5.")],
    model: Annotated[Path | None, typer.Option(help="A model file: its elements must cover the data.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="A label that every frame must have.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the audit to this file too.")] = None,
    *,
    options: ReadOptions,
) -> None:
    """Look at every frame: labels, elements, sizes, reference energies, and what is suspicious, with file and frame.

    Signs and units of forces and virials are told from similar frames (energy differences against the work of forces
    and stress) and from clusters in vacuum; "not testable" where a set has neither. Ends with status 1 if there is an
    error, 0 else.
    """
    if unknown := sorted(set(require or ()) - set(LABELS)):
        raise ValueError(f"--require {unknown[0]}: no such label; labels are {', '.join(LABELS)}.")
    if json_ is not None:
        outputs.check_ending(json_, (".json",), "the audit is")
        outputs.claim([json_], [*files_of(files), *([model] if model else [])], "--json")
    known = checkpoints.load(model)[0].elements if model else None
    remarks: list[Finding] = []
    read = {str(path): _frames(path, known, require or (), options, remarks) for path in files}
    audited = audit({name: progress(frames, name, None) for name, frames in read.items()})
    severities = ("error", "warning", "note")
    findings = sorted((*remarks, *audited.findings), key=lambda finding: severities.index(finding.severity))
    audited = audited._replace(findings=tuple(findings))
    report(audited)
    if json_ is not None:
        json_.write_text(json.dumps(_plain(audited), indent=1, ensure_ascii=False) + "\n")
    if any(finding.severity == "error" for finding in audited.findings):
        raise typer.Exit(1)


def report(audited: Audit) -> None:
    """The facts of every set and the table of what is suspicious."""
    for one in audited.sets:
        energies = " ".join(f"{e} {x:.3f}" for e, x in one.references.items())
        rows = [
            ("frames", one.n_frames),
            ("atoms (min, median, max)", "{}, {:g}, {}".format(*one.n_atoms)),
            *((f"with {label}", n) for label, n in one.labelled.items()),
            ("labels found as (frames)", _counted(one.keys)),
            ("other keys (frames)", _counted(one.others)),
            ("elements (frames)", " ".join(f"{e}({n})" for e, n in one.elements.items())),
            ("energy per element (eV)", energies or "-"),
            ("what that leaves (meV/atom)", "-" if one.residual is None else one.residual),
            ("forces and energies", one.forces),
            ("virials and energies", one.virial),
        ]
        console.print(table(one.name, ["", ""], rows))
    if not audited.findings:
        console.print("Nothing suspicious.")
    for finding in grouped(audited.findings):
        color = {"error": "bold red", "warning": "yellow", "note": "dim"}[finding.severity]
        where = f"{finding.where}" + (f" ({finding.n} frames in all)" if finding.n > 1 else "")
        console.print(f"[{color}]{finding.severity}[/] {escape(where)}: {escape(finding.what)}", soft_wrap=True)
        console.print(f"    {escape(finding.remedy)}", style="dim", soft_wrap=True)


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a kind and set: of those that differ in numbers alone the first one, with the frames of all."""
    kinds: dict[tuple, Finding] = {}
    for finding in findings:
        kind = (finding.severity, finding.set, re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", finding.what))
        first = kinds.setdefault(kind, finding)
        if first is not finding:
            both = (*(first.frames or (first.where,)), *(finding.frames or (finding.where,)))
            kinds[kind] = first._replace(n=first.n + finding.n, frames=both)
    return list(kinds.values())


def _counted(keys: dict[str, int]) -> str:
    """`energy: REF_energy (40), forces: REF_forces (38)`."""
    return ", ".join(f"{key} ({n})" for key, n in sorted(keys.items())) or "-"


def _frames(
    path: Path, elements: Sequence[str] | None, require: Any, options: ReadOptions, remarks: list[Finding]
) -> Iterator[Frame]:
    """The frames that can be used; the others, a file that cannot be read on, and what is odd become findings."""

    def tell(error: Exception) -> None:
        message = str(error).partition(": ")
        remedy = "Repair or leave the frame out; no training reads a file with it."
        remarks.append(Finding("error", str(path), message[0], 1, message[2], remedy))

    def note(one: Remark) -> None:
        remarks.append(Finding(one.severity, str(path), one.source, one.n, one.what, one.remedy))

    try:
        yield from iterate(path, np.float64, elements, require, on_error=tell, options=options, on_remark=note)
    except (ValueError, OSError) as error:
        tell(error)


def _plain(audited: Audit) -> dict:
    return {
        "sets": [one._asdict() for one in audited.sets],
        "findings": [finding._asdict() for finding in audited.findings],
    }


def data_table(sets: dict[str, list[Frame]]) -> FittingTable:
    """One column a set of frames: number, sizes, labels and where they were found, elements."""
    summaries = [summarize(frames) for frames in sets.values()]

    def row(name: str, value: Any) -> list:
        return [name, *(value(s) for s in summaries)]

    rows = [
        row("frames", lambda s: s.n_frames),
        row("atoms (min, median, max)", lambda s: "{}, {:g}, {}".format(*s.n_atoms)),
        row("periodic in 3 directions", lambda s: s.periodic),
        *(row(f"with {label}", lambda s, label=label: s.labelled[label]) for label in ("energy", "forces", "virial")),
        row("labels found as", lambda s: ", ".join(_names_by_label(s.keys)) or "-"),
        row("elements (frames)", lambda s: " ".join(f"{e}({n})" for e, n in s.elements.items())),
    ]
    return table("Data", ["", *sets], rows)


def _names_by_label(keys: dict[str, int]) -> list[str]:
    """The names of the keys, once each."""
    return sorted({key.partition(": ")[2] for key in keys})
