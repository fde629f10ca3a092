"""`lamjax eval`: errors of a model on labelled structures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import ase
import jax
import numpy as np
import typer
from jaxtyping import PyTree
from rich.markup import escape

from lamjax import checkpoints, pytree
from lamjax.cli import reading
from lamjax.cli.committee import load_members
from lamjax.cli.option_groups import with_groups
from lamjax.cli.options import Model
from lamjax.data import Frame, ReadOptions, files_of, pack, plan, read, records
from lamjax.data.atoms import add_labels
from lamjax.distillation.selection import deviations, quantiles
from lamjax.evaluation.errors import (
    FORCES,
    SHIFTED,
    VIRIAL,
    ErrorRow,
    error_table,
    predictions,
    unseen_elements,
    zero_shot,
)
from lamjax.evaluation.parity import ParityRow, missing, parity_table, read_reference, write_predictions
from lamjax.frames import LABELS
from lamjax.potential import Prediction
from lamjax.reports import console, outputs, table
from lamjax.system import to_ase

_SHORT = {SHIFTED: "E", FORCES: "F", VIRIAL: "V"}


class Settings(NamedTuple):
    """The options of the command."""

    model: Path
    files: Sequence[Path]
    head: str | None
    precision: str
    batch_size: int | str
    max_programs: int
    reference: Path | None
    committee: Sequence[Path]
    out: Path | None
    options: ReadOptions


@with_groups(options=reading.options)
def evaluate(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="Labelled structures: extxyz, what ASE reads, DeePMD folders.")],
    head: Annotated[str | None, typer.Option(help="The head; of a model with several, all are tried without.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    batch_size: Annotated[str, typer.Option(help="Structures at a time, or auto:N for about N atoms.")] = "auto:256",
    max_programs: Annotated[int, typer.Option(help="Shapes that are compiled.")] = 4,
    reference: Annotated[
        Path | None,
        typer.Option(help="Predictions to compare with: .npz as --output writes it, or labelled structures."),
    ] = None,
    committee: Annotated[
        list[Path] | None,
        typer.Option(help="Another member of a committee, of the same config; repeatable. Tells where they differ."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", "--out", help="Write predictions: .npz (every digit), .extxyz or .extxyz.gz (8 decimals)."
        ),
    ] = None,
    *,
    options: ReadOptions,
) -> None:
    """Mean absolute and root mean square errors of energy, forces and virial against the labels of the structures.

    Of a model with several heads and without --head: one line a head, the best first, which tells whose level of theory
    suits the data. Energies are compared after a least-squares shift per element.

    With --reference: the differences from the predictions of another code or model for the same frames, the largest one
    with its frame and atom. Use --precision float64 for that.

    With --committee: the force deviation sqrt(<|F - <F>|²>) of the model and these members, of the atom where it is
    largest in each frame; --output writes it with every frame (deviation, eV/Å).

    --output FILE.npz holds energy (n_frames,), virial (n_frames, 3, 3), forces (n, 3) and atomic_energies (n,) of the
    atoms of all frames one after another, n_atoms (n_frames,) and sources, in eV and Å.
    """
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision must be float32 or float64, got {precision!r}.")
    if out is not None:
        outputs.check_ending(out, (".npz", ".extxyz", ".extxyz.gz"), "predictions are")
        read_too = [path for path in (reference, *(committee or ())) if path is not None]
        outputs.claim([out], [model, *files_of(files), *read_too], "--output")
    size = int(batch_size) if batch_size.isdigit() else batch_size
    _evaluate(Settings(model, files, head, precision, size, max_programs, reference, committee or [], out, options))


def _evaluate(chosen: Settings) -> None:
    """Compute, print and write what the settings ask for."""
    model, reference, precision, committee = chosen.model, chosen.reference, chosen.precision, chosen.committee
    with jax.enable_x64(True):  # for sums of energies; the network runs in `precision`
        potential, params = checkpoints.load(model, chosen.head, np.dtype(precision))
        frames = read(chosen.files, elements=potential.elements, options=chosen.options)
        expected = None if reference is None else read_reference(reference, frames)
        only_errors = reference is None and chosen.out is None and not committee
        if only_errors:
            _check_labels(frames)
        shapes = plan(frames, potential.shells, chosen.max_programs, len(frames), chosen.batch_size)
        packed = pack(frames, shapes, precision)
        if potential.head is None and not only_errors:
            raise ValueError(
                f"--reference, --committee and --output need --head, one of {', '.join(potential.config.head_names)}."
            )
        if chosen.head is None and len(potential.config.head_names) > 1 and only_errors:
            errors = zero_shot(potential, params, frames, packed, chosen.batch_size)
            unseen = unseen_elements(potential, params, frames)
            _report_heads(f"{model.name} ({precision}): {len(frames)} frames", errors, unseen)
            _tell_lacking(frames)
            return
        predicted = predictions(potential, params, packed, chosen.batch_size)
        members = load_members(potential, params, committee) if committee else None
        deviation = deviations(potential, members, packed, chosen.batch_size) if committee else None
    title = f"{model.name} ({precision}): {len(frames)} frames of {', '.join(path.name for path in chosen.files)}"
    _report_errors(title, error_table(potential, frames, predicted))
    if reference is None:
        _tell_lacking(frames)
    if deviation is not None:
        _report_deviation(frames, deviation, 1 + len(committee))
    if reference is not None and expected is not None:
        title = f"{model.name} ({precision}): {len(frames)} frames against {reference.name}"
        _report_parity(title, parity_table(frames, predicted, expected), missing(expected))
        if precision == "float64" and _single(params):
            console.print("The file's parameters are float32 numbers: a reference run in float32 has its own rounding.")
    if chosen.out is not None:
        write(chosen.out, frames, predicted, deviation)
        console.print(f"Predictions: {escape(str(chosen.out))}", soft_wrap=True)


def _report_heads(title: str, tables: dict[str, list[ErrorRow]], unseen: dict[str, list[str]]) -> None:
    """One line a head: RMSE and MAE of every quantity that has labels, and elements that its data did not hold."""
    first = next(iter(tables.values()))
    kept = [row.quantity for row in first if row.quantity != "energy"]
    columns = ["head"] + [
        f"{_SHORT[row.quantity]} {kind} ({row.unit})"
        for row in first
        if row.quantity in kept
        for kind in ("RMSE", "MAE")
    ]
    strange = any(unseen.values())
    columns += ["never seen"] if strange else []
    rows = [
        [head, *(x for row in lines if row.quantity in kept for x in (row.rmse, row.mae))]
        + ([", ".join(unseen[head]) or "-"] if strange else [])
        for head, lines in tables.items()
    ]
    console.print(table(title, columns, rows))
    console.print(f"Energies after a least-squares shift per element. {advice(list(tables), unseen)}", soft_wrap=True)


def advice(heads: list[str], unseen: dict[str, list[str]]) -> str:
    """Which head suits the frames, of heads with the best first: one whose data held all elements of the frames."""
    known = [head for head in heads if not unseen[head]]
    if not known:
        return (
            f"No head has seen all elements of these frames ({heads[0]}, of the least error, never saw "
            f"{', '.join(unseen[heads[0]])}): do not rely on any, fine-tune one with `lamjax finetune`."
        )
    text = f"{known[0]} suits these frames best."
    if known[0] != heads[0]:
        text += f" {heads[0]} has a smaller error, but never saw {', '.join(unseen[heads[0]])}."
    return text


def _lacking(frames: Sequence[Frame]) -> list[str]:
    """The quantities of which no frame carries a label."""
    labelled = np.any([frame.labels.weights > 0 for frame in frames], axis=0)
    return [name for name, is_there in zip(LABELS, labelled, strict=True) if not is_there]


def _check_labels(frames: Sequence[Frame]) -> None:
    """ValueError where there is no label at all, which says what the first frame carries instead."""
    if len(_lacking(frames)) < len(LABELS):
        return
    carried = ", ".join(sorted(frames[0].info)) or "nothing"
    raise ValueError(
        f"No frame carries a label: nothing to compare with. The first one ({frames[0].source}) carries "
        f"{carried}. Name the keys of its labels (--energy-key, --forces-key, --stress-key, --virial-key), or write "
        "predictions alone with --output."
    )


def _report_errors(title: str, rows: list[ErrorRow]) -> None:
    if rows:
        console.print(table(title, ["", "unit", "frames", "MAE", "RMSE", "largest"], rows))


def _tell_lacking(frames: Sequence[Frame]) -> None:
    """A line for the quantities that were compared with no label."""
    lacking = _lacking(frames)
    if len(lacking) == len(LABELS):
        console.print("No frame carries a label: nothing was compared.")
    elif lacking:
        console.print(f"No frame carries a label of {', '.join(lacking)}: not compared.")


def _report_parity(title: str, rows: list[ParityRow], lacking: list[str]) -> None:
    columns = ["difference", "unit", "frames", "largest", "RMS", "relative"]
    console.print(table(title, columns, [(*row[:5], "-" if row.relative is None else row.relative) for row in rows]))
    console.print("Relative: largest ratio to the largest reference component of the same frame. Atoms count from 0.")
    for row in rows:
        console.print(f"largest in {row.quantity}: {escape(row.where)}", soft_wrap=True)
    if lacking:
        console.print(f"Not in the reference, not compared: {', '.join(lacking)}.")


def _report_deviation(frames: list[Frame], deviation: np.ndarray, n_members: int) -> None:
    levels = quantiles(deviation)
    columns = ["largest force deviation in a frame", "unit", "frames", *levels]
    row = (f"committee of {n_members}", "eV/Å", len(frames), *("∞" if q is None else q for q in levels.values()))
    console.print(table("What the members do not agree on", columns, [row]))
    console.print(f"largest in {escape(frames[int(np.argmax(deviation))].source)}", soft_wrap=True)


def _single(params: PyTree) -> bool:
    """True if every weight (statistics aside) is a float32 number, as in a file that was stored in float32."""
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    weights = [np.asarray(leaf) for path, leaf in named if "statistics" not in pytree.path_name(path)]
    return all(np.array_equal(w, w.astype(np.float32)) for w in weights)


def write(path: Path, frames: list[Frame], predicted: list[Prediction], deviation: np.ndarray | None = None) -> None:
    """Predictions as .npz (see `parity.write_predictions`), or as extxyz with the labels as REF_*."""
    more = {} if deviation is None else {"deviation": deviation}
    if path.suffix == ".npz":
        write_predictions(path, frames, predicted, more)
        return
    atoms = [_atoms(f, p) for f, p in zip(frames, predicted, strict=True)]
    for k, one in enumerate(atoms):
        one.info |= {name: float(values[k]) for name, values in more.items()}
    records.write(path, atoms)


def _atoms(frame: Frame, prediction: Prediction) -> ase.Atoms:
    atoms = to_ase(frame.system, prediction)
    atoms.info["source"] = frame.source
    add_labels(atoms, frame.labels)
    return atoms
