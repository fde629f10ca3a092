"""Structure errors of a model: held-out starts relaxed to convergence and compared with their targets."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from lamjax import checkpoints, files, numerics, pytree
from lamjax.data import Frame, Pair, matching, pack, plan
from lamjax.data.pairs import pair_name
from lamjax.data.records import one_line
from lamjax.evaluation.errors import FORCES, SHIFTED, VIRIAL, error_table, predictions
from lamjax.losses import StructureError, structure_error
from lamjax.potential import Potential
from lamjax.relaxation import Relaxation, RelaxConfig, stream
from lamjax.system import System, constraints, from_ase, pad, to_ase

ROWS = 64  # structures that are compared at once
COLUMNS = ("dq", "rmsd", "largest", "strain", "volume", "n_steps", "converged", "failed")  # of structures.csv
STAGES = ("start", "before", "after", "target")  # of a held-out relaxation


class Judgement(NamedTuple):
    """A model seen on relaxations that ran to convergence, one entry a structure; infinite where one failed."""

    dq: Float[np.ndarray, " n"]  # amu^1/2 Å from the target
    rmsd: Float[np.ndarray, " n"]  # Å
    largest: Float[np.ndarray, " n"]  # Å, the atom that is farthest off
    strain: Float[np.ndarray, " n"]  # of the cell, from the target's
    volume: Float[np.ndarray, " n"]  # relative change from the target's
    n_steps: Int[np.ndarray, " n"]
    converged: Bool[np.ndarray, " n"]
    failed: Bool[np.ndarray, " n"]  # forces became infinite or NaN, or the structure could not begin
    ends: Sequence[System | None] = ()  # the relaxed structures, None for one that failed; empty: they were not kept


class StructureSummary(NamedTuple):
    """A judgement, and errors on labelled frames, in numbers."""

    dq_median: float  # amu^1/2 Å
    dq_mean: float
    dq_q1: float  # quartiles
    dq_q3: float
    rmsd_median: float  # Å
    rmsd_mean: float
    rmsd_q1: float
    rmsd_q3: float
    strain_median: float
    volume_median: float  # of the absolute relative change
    in_basin: float  # share of structures with no atom farther off than the config's `basin`; NaN: all began there
    improved: float  # share with a smaller dq than before training
    converged: float  # share
    failed: float  # share
    n_steps: float  # median


def judge(
    potential: Potential,
    params: Any,
    pairs: Sequence[Pair],
    config: RelaxConfig,
    watch: Callable = iter,
    matmul_precision: str | None = None,
) -> Judgement:
    """Every start relaxed until it has converged or the steps ran out, and its errors; fixed components stay.

    `watch` gets the iterator of finished relaxations and may show its progress.
    """
    relaxations: list[Relaxation | None] = [None] * len(pairs)
    starts, fixed = [pair.start for pair in pairs], [pair.fixed for pair in pairs]
    with numerics.matmul_precision(matmul_precision):
        for outcome in watch(stream(potential, params, starts, config, fixed=fixed)):
            relaxations[outcome.number] = outcome.relaxation
    failed = np.array([r is None or not bool(r.finite) for r in relaxations])
    errors = compare([p.start if r is None else r.system for r, p in zip(relaxations, pairs, strict=True)], pairs)
    return Judgement(
        *(np.where(failed, np.inf, np.asarray(e, np.float64)) for e in errors),
        n_steps=np.array([0 if r is None else int(r.n_steps) for r in relaxations]),
        converged=np.array([r is not None and bool(r.converged) for r in relaxations]),
        failed=failed,
        ends=[None if bad or r is None else r.system for r, bad in zip(relaxations, failed, strict=True)],
    )


def compare(systems: Sequence, pairs: Sequence[Pair]) -> StructureError:
    """The errors (n,) of systems against the targets of the pairs, in one program whatever their sizes."""
    n_atoms = max(pair.start.n_atoms for pair in pairs)
    n = min(ROWS, len(pairs))

    def row(system: System, pair: Pair) -> tuple[System, System, np.ndarray]:
        fixed = np.pad(pair.fixed, ((0, n_atoms - len(pair.fixed)), (0, 0)))
        return pad(system, n_atoms), pad(pair.target, n_atoms), fixed

    rows = [row(system, pair) for system, pair in zip(systems, pairs, strict=True)]
    rows += [rows[-1]] * (-len(rows) % n)
    run = jax.jit(structure_error)
    parts = [jax.device_get(run(*pytree.stack(rows[k : k + n]))) for k in range(0, len(rows), n)]
    return StructureError(*(np.concatenate(column)[: len(pairs)] for column in zip(*parts, strict=True)))


def summary(
    judgement: Judgement, before: Judgement, basin: float, apart: Bool[np.ndarray, " n"] | None = None
) -> StructureSummary:
    """The numbers of a judgement; `before` is that of the model before training, `basin` in Å.

    `apart` are the structures that began elsewhere than at their target: of these alone the basin says something.
    """
    within = (judgement.largest < basin)[np.ones(len(judgement.dq), bool) if apart is None else apart]
    quartiles = {f"{x}_q{k}": _quantile(getattr(judgement, x), k / 4) for x in ("dq", "rmsd") for k in (1, 3)}
    means = {f"{x}_mean": float(np.mean(getattr(judgement, x))) for x in ("dq", "rmsd")}
    return StructureSummary(
        dq_median=float(np.median(judgement.dq)),
        rmsd_median=float(np.median(judgement.rmsd)),
        strain_median=float(np.median(judgement.strain)),
        volume_median=float(np.median(np.abs(judgement.volume))),
        in_basin=float(np.mean(within)) if len(within) else np.nan,
        improved=float(np.mean(judgement.dq < before.dq)),
        converged=float(np.mean(judgement.converged)),
        failed=float(np.mean(judgement.failed)),
        n_steps=float(np.median(judgement.n_steps)),
        **quartiles,
        **means,
    )


def _quantile(x: np.ndarray, share: float) -> float:
    """The value that so many are below; one of them, for between infinite ones nothing can be interpolated."""
    return float(np.quantile(x, share, method="nearest"))


class LabelledSets:
    """Labelled frames in arrays, on which the errors of all labels are measured as often as is wanted."""

    def __init__(
        self, frames: Mapping[str, Sequence[Frame]], potentials: Mapping[str, Potential], precision: str
    ) -> None:
        self.sets = {
            what: (potentials[what], some, pack(some, plan(some, potentials[what].shells, 2), precision))
            for what, some in frames.items()
        }

    def errors(self, params: Any) -> dict[str, float]:
        """Those of every set that has such labels.

        {"SET_rmse_e": eV/atom after the best shift per element, "SET_rmse_f": eV/Å, "SET_rmse_v": virial, eV/atom}
        """
        rmse = {}
        for what, (potential, frames, packed) in self.sets.items():
            rows = {r.quantity: r.rmse for r in error_table(potential, frames, predictions(potential, params, packed))}
            rmse |= {
                f"{what}_rmse_{kind}": rows[quantity] / 1000
                for kind, quantity in (("e", SHIFTED), ("f", FORCES), ("v", VIRIAL))
                if quantity in rows
            }
        return rmse

    @property
    def columns(self) -> list[str]:
        """Every name that `errors` may give."""
        return [f"{what}_rmse_{kind}" for what in self.sets for kind in "efv"]


def write_structures(path: Path, pairs: Sequence[Pair], before: Judgement, after: Judgement) -> None:
    """One line a structure, with every quantity before and after."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["structure", "n_atoms", *(f"{c}_{when}" for c in COLUMNS for when in ("before", "after"))])
    for k, pair in enumerate(pairs):
        numbers = [getattr(j, c)[k].item() for c in COLUMNS for j in (before, after)]
        rows.writerow([pair_name(pair), pair.start.n_atoms, *numbers])
    checkpoints.write_atomically(path, text.getvalue().encode())


def read_structures(path: Path, when: str) -> Judgement:
    """The judgement "before" or "after" in a file of `write_structures`, to the last digit."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {"n_steps": int, "converged": "True".__eq__, "failed": "True".__eq__}
    columns: Any = [np.array([kinds.get(c, float)(row[f"{c}_{when}"]) for row in rows]) for c in COLUMNS]
    return Judgement(*columns)


def write_ends(path: Path, pairs: Sequence[Pair], before: Judgement, after: Judgement) -> None:
    """An extxyz file of the structures behind the numbers of `write_structures`: for each pair up to four frames.

    Their info has `number`, the row in that table, `structure`, its name there, and `stage`: start, before and after
    (as relaxed by the model before and after training, where the relaxation did not fail), target.
    """
    import ase.io

    text = io.StringIO()
    for k, pair in enumerate(pairs):
        stages: dict[str, System | None] = {"start": pair.start, "target": _beside_start(pair)}
        for stage, judgement in (("before", before), ("after", after)):
            stages[stage] = judgement.ends[k] if judgement.ends else None
        for stage in STAGES:
            if (structure := stages[stage]) is not None:
                atoms = to_ase(structure)
                atoms.set_constraint(constraints(pair.fixed))
                atoms.info = {"number": k, "structure": one_line(pair_name(pair)), "stage": stage}
                ase.io.write(text, atoms, format="extxyz")
    files.write_atomically(path, text.getvalue().encode())


def read_ends(path: Path) -> dict[int, dict[str, ase.Atoms]]:
    """{number: {stage: structure}} of what `write_ends` wrote; empty where there is no file."""
    import ase.io

    ends: dict[int, dict[str, ase.Atoms]] = {}
    for atoms in ase.io.iread(path, format="extxyz") if path.is_file() else ():
        ends.setdefault(int(atoms.info["number"]), {})[str(atoms.info["stage"])] = atoms
    return ends


def with_ends(judgement: Judgement, path: Path, stage: str) -> Judgement:
    """The judgement with its relaxed structures, "before" or "after", as `write_ends` wrote them."""
    kept = read_ends(path)
    ends = [kept.get(k, {}).get(stage) for k in range(len(judgement.dq))] if kept else []
    return judgement._replace(ends=[None if atoms is None else from_ase(atoms, np.float64) for atoms in ends])


def _beside_start(pair: Pair) -> System:
    """The target with its atoms in the periodic images that are nearest to those of the start."""
    start, target = pair.start, pair.target
    beside = start._replace(positions=start.positions + matching.displacements(start, target))
    return target._replace(positions=matching.in_cell_of(target, beside))
