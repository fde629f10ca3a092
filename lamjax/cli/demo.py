"""`lamjax demo`: silicon defects that relax to the wrong place, and a potential that learns where they should end."""

import csv
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ase
import ase.io
import numpy as np
import typer
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import PyTree

from lamjax import checkpoints, data, files, losses, relaxation, training
from lamjax.calculator import Calculator
from lamjax.cli.relax import labelled
from lamjax.distillation.exploration import perturbed
from lamjax.potential import Potential
from lamjax.relaxation import Hybrid, Relaxation, RelaxConfig
from lamjax.reports import console, outputs, plots, progress, table
from lamjax.system import to_ase

ASSETS = resources.files("lamjax") / "assets" / "demo"
RELAX = RelaxConfig(fmax=0.02, max_steps=400)  # how structures are judged: at full convergence
BASE, HEAD = "small", "nequix"  # predictions at the level of PBE
WINDOW = 20  # first steps of a relaxation that are unrolled for its gradient; its end is differentiated as a minimum
BATCH = 4
RATE = 5e-4
KEPT = {"Si": 5.47, "Ge": 5.76, "Li": 3.43, "Mo": 3.16}  # crystals (lattice constants in Å) on which the base is kept
KEPT_WEIGHT = 0.25


class Measures(NamedTuple):
    """Errors of a potential on held-out relaxations."""

    relaxed: list[Relaxation]
    dq: np.ndarray  # (n,) amu^1/2 Å from the DFT-relaxed structure
    rmsd: np.ndarray  # (n,) Å
    force_rmse: float  # eV/Å on all steps of the DFT relaxations
    elsewhere: float  # eV/Å on other crystals (PBE: Si, Ge, Li, Mo)


def demo(
    out: Annotated[
        Path, typer.Option("--output", "-o", "--out", help="Folder for the tuned model, structures, CSV and plot.")
    ] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the training relaxations.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the order of the structures.")] = 0,
) -> None:
    """Fine-tune `small` through its own relaxation, on real silicon defects; about five minutes on a CPU.

    Held-out defects are relaxed before and after; the table tells how far they end from where DFT relaxes them to.
    """
    outputs.claim_folder(out, ("*",), option="--output")
    with files.alone(out):
        show_effect(out, epochs, seed)


def show_effect(out: Path, epochs: int, seed: int) -> None:
    """Relax, fine-tune and relax again; files and a table show the errors before and after."""
    began = time.monotonic()
    potential, params = checkpoints.load(BASE, HEAD)
    frames = {name: data.read(str(ASSETS / f"si_defects_{name}.extxyz.gz")) for name in ("train", "heldout")}
    pairs = {name: data.pairs_from_frames(f) for name, f in frames.items()}
    labelled_frames = {"paths": frames["heldout"], "elsewhere": data.read(str(ASSETS / "pbe_elsewhere.extxyz.gz"))}
    console.print(
        f"{BASE}, a DPA-2 for all elements; {len(pairs['train'])} DFT (LDA) relaxations of silicon defects to learn "
        f"from, {len(pairs['heldout'])} others held out."
    )
    before = judge(potential, params, pairs["heldout"], labelled_frames, "relaxing held-out defects, before")
    params, history = tune(potential, params, pairs["train"], epochs, seed)
    card = {"what": f"{BASE}, fine-tuned through relaxation on silicon defects", "made by": "lamjax demo"}
    checkpoints.save(out / "tuned.lamjax", potential, params, card)
    after = judge(potential, params, pairs["heldout"], labelled_frames, "relaxing held-out defects, after")
    names = [f"{pair.info['family']} {pair.info['relax_id'][:3]}" for pair in pairs["heldout"]]
    write(out, names, before, after, history, epochs)
    console.print(summary(before, after))
    console.print(f"{time.monotonic() - began:.0f} s. {out}/ holds tuned.lamjax, relaxed.extxyz, errors.csv, demo.png")


def judge(
    potential: Potential,
    params: PyTree,
    pairs: Sequence[data.Pair],
    frames: Mapping[str, Sequence[data.Frame]],
    what: str,
) -> Measures:
    """Relax every start to convergence and compare with the target; force errors on the labelled frames."""
    outcomes = relaxation.stream(potential, params, [pair.start for pair in pairs], RELAX)
    relaxed = [outcome.relaxation for outcome in sorted(progress(outcomes, what, len(pairs)), key=lambda o: o.number)]
    errors = [losses.structure_error(r.system, p.target) for r, p in zip(relaxed, pairs, strict=True)]
    dq, rmsd = (np.array([float(getattr(e, name)) for e in errors]) for name in ("dq", "rmsd"))
    return Measures(
        relaxed, dq, rmsd, *(force_error(potential, params, frames[name]) for name in ("paths", "elsewhere"))
    )


def force_error(potential: Potential, params: PyTree, frames: Sequence[data.Frame]) -> float:
    """Root mean square error of the force components (eV/Å)."""
    packed = data.pack(frames, data.plan(frames, potential.shells, max_programs=1))
    batches = data.batches(packed, 16, seed=None, epochs=1)
    return float(training.evaluate(losses.label_loss(potential), params, batches)["rmse_f"])


def tune(potential: Potential, params: PyTree, pairs: Sequence[data.Pair], epochs: int, seed: int) -> tuple[Any, list]:
    """Gradients through first steps and end of relaxations: parameters, and the mean Dq (amu^1/2 Å) of each step.

    What the base itself says of a few shaken crystals is mixed in, so that it is not forgotten: no label is needed.
    """
    config = losses.StructureLossConfig(relax=RelaxConfig(fmax=RELAX.fmax, adjoint=Hybrid(WINDOW)))
    forces_alone = losses.LabelLossConfig(start_pref_e=0.0, limit_pref_e=0.0, start_pref_f=100.0, limit_pref_f=100.0)
    parts = {"structures": (1.0, losses.structure_loss(potential, config))}
    loss = losses.weighted_sum(parts | {"base": (KEPT_WEIGHT, losses.label_loss(potential, forces_alone))})
    shaken = [data.from_atoms(atoms) for atoms in shaken_crystals(potential, params, seed)]
    kept = data.pack(shaken, data.plan(shaken, potential.shells, max_programs=1))
    packed = data.pack_pairs(pairs, potential.shells, max_programs=1)
    n_steps = epochs * -(-len(pairs) // BATCH)
    rate = training.schedule(training.ScheduleConfig(type="cosine", start_lr=RATE, stop_lr=RATE / 20), n_steps)
    optimizer = training.optimizer(training.OptimizerConfig("adam", max_norm=1.0), rate)
    batches = (
        {"structures": batch, "base": old}
        for epoch in range(epochs)
        for batch, old in zip(
            data.pair_batches(packed, BATCH, seed=seed + epoch),
            data.batches(kept, 2 * BATCH, seed=seed + epoch, epochs=None),
            strict=False,
        )
    )
    state = training.init(params, optimizer)
    history = []
    run = training.fit(loss, state, optimizer, batches)
    for state, metrics in progress(run, f"{n_steps} gradients through relaxations", n_steps):  # noqa: B007
        history.append(float(metrics["structures/dq_mean"]))
    return state.params, history


def shaken_crystals(potential: Potential, params: PyTree, seed: int, each: int = 12) -> list[ase.Atoms]:
    """Crystals of 16 atoms, strained by some per cent, atoms displaced by 0.15 Å, with what the model says of them."""
    random = np.random.default_rng(seed)
    crystals = []
    for symbol, a in KEPT.items():
        kind = "diamond" if symbol in ("Si", "Ge") else "bcc"
        for _ in range(each):
            frame = data.from_atoms(bulk(symbol, kind, a=a, cubic=kind == "bcc").repeat(2))
            crystals.append(to_ase(perturbed(frame, random, displacement=0.15, strain=0.03)))
    calculator = Calculator((potential, params))  # in float64
    for atoms in crystals:
        energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return crystals


def summary(before: Measures, after: Measures) -> Any:
    """The one table: structure error and force error, before and after."""
    better = after.dq < before.dq
    rows = [
        ("mean Dq (amu^½ Å)", before.dq.mean(), after.dq.mean()),
        ("median Dq (amu^½ Å)", np.median(before.dq), np.median(after.dq)),
        ("median RMSD (Å)", np.median(before.rmsd), np.median(after.rmsd)),
        ("converged", *(f"{sum(bool(r.converged) for r in j.relaxed)} of {len(j.dq)}" for j in (before, after))),
        ("structures improved", "", f"{np.sum(better)} of {len(better)} ({np.mean(better):.0%})"),
        ("force RMSE on their DFT paths (eV/Å)", before.force_rmse, after.force_rmse),
        ("force RMSE elsewhere (eV/Å)", before.elsewhere, after.elsewhere),
    ]
    rows = [tuple(float(x) if isinstance(x, np.floating) else x for x in row) for row in rows]
    return table("Held-out silicon defects, relaxed to convergence", ("", "before", "after"), rows)


def write(out: Path, names: Sequence[str], before: Measures, after: Measures, history: Any, epochs: int) -> None:
    """Relaxed structures, the errors one by one, and the plot."""
    images = [
        labelled(r, {"name": name, "potential": which})
        for which, judgement in (("before", before), ("after", after))
        for name, r in zip(names, judgement.relaxed, strict=True)
    ]
    ase.io.write(out / "relaxed.extxyz", images)
    with open(out / "errors.csv", "w", newline="") as file:
        rows = csv.writer(file)
        columns = [f"{what}_{when}" for what in ("dq", "rmsd", "steps") for when in ("before", "after")]
        rows.writerow(["structure", *columns])
        for k, name in enumerate(names):
            steps = int(before.relaxed[k].n_steps), int(after.relaxed[k].n_steps)
            rows.writerow([name, before.dq[k], after.dq[k], before.rmsd[k], after.rmsd[k], *steps])
    gain = 100 * (1 - np.median(after.dq) / np.median(before.dq))
    plots.before_after(
        out / "demo.png",
        plots.Comparison(names, before.dq, after.dq, "distance from the DFT-relaxed structure, Dq (amu$^{1/2}$ Å)"),
        f"Silicon defects never trained on: median structure error {-gain:+.0f} %",
        plots.TrainingCurve(history, "mean Dq of the training batch (amu$^{1/2}$ Å)", len(history) // epochs),
        costs={
            "on their DFT paths": (before.force_rmse, after.force_rmse),
            "elsewhere: Si, Ge,\nLi, Mo in PBE": (before.elsewhere, after.elsewhere),
        },
        costs_label="force RMSE (eV/Å)",
    )
