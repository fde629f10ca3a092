"""Volumes, moduli and heat capacities of the shipped model beside DFT, and fine-tuning on what a larger model says of
30 compounds: moduli, or force constants.

python -m experiments.properties.labels nequix-mp-1.nqx     # labels and teacher.json, which are stored here
python -m experiments.properties.run                        # all; goes on where it stopped
python -m experiments.properties.run --report               # tables and plot of what is finished
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np

from experiments import workflow
from experiments.look import PROPERTIES
from experiments.properties import crystals
from experiments.properties.crystals import HERE
from lamjax import checkpoints
from lamjax.evaluation.errors import predictions
from lamjax.reports import console, style
from lamjax.system import to_ase
from lamjax.training import engine, folder, properties, properties_judge
from lamjax.training.properties_data import loss_on, pack, read_crystals

BASE, HEAD = "small", "nequix"
LABELS = HERE / "labels" / "crystals.extxyz"  # by labels.py
REPEATS = [2, 2, 2]  # of the cell in the supercell of the force constants
N_TRAIN, N_VALIDATION = 30, 8  # of the labelled crystals; the others are held out
N_OTHERS = 60  # crystals of the elastic benchmark beside the compounds that the fine-tuning is about
NAMES = ("volume_per_atom", "bulk_modulus", "shear_modulus")
TARGETS = [{"name": name, "scale": None} for name in NAMES]
HEAT_CAPACITY = "heat_capacity_per_atom"
HEAT = [{"name": HEAT_CAPACITY, "scale": None}]
DULONG_PETIT = 24.943  # J/mol/K, 3R
ELASTIC_KEYS = ("volume_per_atom", "bulk_modulus_GPa", "shear_modulus_GPa")  # of the labels
QUICK = 6  # crystals of each benchmark with --quick
REPLAYED = 200  # frames whose forces the base itself gives


class Study(NamedTuple):
    """What is learned."""

    targets: list[dict[str, Any]]
    constants: bool  # force constants
    rate: float


STUDIES = {"moduli": Study(TARGETS, False, 5e-4), "force constants": Study([], True, 5e-4)}


def main() -> None:
    parser = workflow.arguments(__doc__, HERE, seeds=range(5))
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    work = options.work / ("properties_quick" if options.quick else "properties")
    if options.quick:
        options.seeds, options.epochs = options.seeds[:1], 1
    if not options.report:
        workflow.begin(options.work, options.cache)
        files = benchmarks(work, QUICK if options.quick else None) | dict.fromkeys(
            ("labelled", "labelled_heat"), str(LABELS)
        )
        base = checkpoints.load(BASE, HEAD, np.float32)
        workflow.once(work / "base.json", lambda: judged(base, files))
        for seed in options.seeds:
            for study in options.studies:
                file = work / f"tuned_{study.replace(' ', '_')}_{seed}.json"
                workflow.once(file, lambda study=study, seed=seed: tuned(study, seed, files, work, options))
    report(work, work / "report" if options.quick else HERE)


def benchmarks(work: Path, most: int | None = None) -> dict[str, str]:
    """The crystals that are compared with DFT as files with targets, at most so many in each."""
    work.mkdir(parents=True, exist_ok=True)
    sets = {"elastic": [with_volume(x) for x in crystals.elastic()], "heat": [with_heat(x) for x in crystals.phonon()]}
    others = [atoms for atoms in sets["elastic"] if not crystals.is_octet(atoms.info["formula"])]
    sets["elastic"] = [atoms for atoms in sets["elastic"] if crystals.is_octet(atoms.info["formula"])]
    sets["elastic"] += others[:N_OTHERS]
    for name, some in sets.items():
        ase.io.write(work / f"{name}.extxyz", some[:: -(-len(some) // most)] if most else some)
    return {name: str(work / f"{name}.extxyz") for name in sets}


def labelled(study: str, seed: int, work: Path) -> dict[str, str]:
    """The labelled crystals, each a chemistry of its own, to train on, to choose the epoch by, and held out."""
    some = ase.io.read(LABELS, ":")
    some = [some[k] for k in np.random.default_rng(seed).permutation(len(some))]
    others = (*ELASTIC_KEYS, HEAT_CAPACITY) if STUDIES[study].constants else ("force_constants", "supercell")
    for atoms in some:
        if STUDIES[study].constants:
            atoms.info["force_constants"] = str(LABELS.parent / atoms.info["force_constants"])
        for key in others:
            atoms.info.pop(key, None)
    ends = {
        "train": (0, N_TRAIN),
        "validation": (N_TRAIN, N_TRAIN + N_VALIDATION),
        "held_out": (N_TRAIN + N_VALIDATION, None),
    }
    folder = work / f"labelled_{study.replace(' ', '_')}_{seed}"
    folder.mkdir(exist_ok=True)
    for name, (first, last) in ends.items():
        ase.io.write(folder / f"{name}.extxyz", some[first:last])
    if not (work / "replay.extxyz").is_file():
        ase.io.write(work / "replay.extxyz", replayed())
    return {name: str(folder / f"{name}.extxyz") for name in ends} | {"replay": str(work / "replay.extxyz")}


def with_volume(atoms):
    """The crystal with the volume that DFT relaxed it to as a further target."""
    atoms.info["volume_per_atom"] = atoms.get_volume() / len(atoms)
    return atoms


def with_heat(atoms):
    """The crystal with its heat capacity for an atom."""
    atoms.info[HEAT_CAPACITY] = atoms.info.pop("heat_capacity_J_molK") / len(atoms)
    return atoms


def replayed() -> list:
    """Crystals of the training data with the energies, forces and virials that the base itself gives them."""
    potential, params = checkpoints.load(BASE, HEAD, np.float32)
    every = workflow.measured(potential, {"train": [str(workflow.DATA / "materials_pbeu" / "train.extxyz.gz")]})[
        "train"
    ]
    some = workflow.selection(every, np.random.default_rng(0).permutation(len(every.frames))[:REPLAYED])
    crystals_of_base = []
    for frame, one in zip(some.frames, predictions(potential, params, some.packed, workflow.BATCH), strict=True):
        atoms = to_ase(frame.system)
        atoms.info |= {"REF_energy": float(one.energy), "REF_virial": np.asarray(one.virial)}
        atoms.set_array("REF_forces", np.asarray(one.forces))
        crystals_of_base.append(atoms)
    return crystals_of_base


def settings(files: dict[str, str], targets: list, output: Path, **more: Any) -> properties.PropertyTuneConfig:
    """A config of `lamjax finetune-properties`."""
    content = {"base": BASE, "head": HEAD, "targets": targets, "output": str(output), "max_programs": 1, **files}
    return properties.read_config(None, {"batch_size": 5, "relax": {"fmax": 5e-3, "max_steps": 300}, **more} | content)


def measured(model, file: str, targets: list) -> dict[str, Any]:
    """Properties of every crystal of a file, relaxed with a model, and the numbers of its file, where it has all."""
    began = time.monotonic()
    config = settings({"crystals": [file], "validation": [file]}, targets, Path("unused"))
    potential, params = model
    names = [target["name"] for target in targets]
    some = [one for one in read_crystals(config, config.crystals, potential) if one.targets.keys() >= set(names)]
    loss = loss_on(config, some)
    (packed,) = pack(config, potential, loss, [some])
    judgement = properties_judge.judge(
        potential, params, properties_judge.HeldOut(some, packed, loss, config.batch_size)
    )
    rows = [
        {"name": properties_judge.crystal_name(crystal), "formula": str(crystal.info["formula"])}
        | {
            "n_atoms": crystal.system.n_atoms,
            **{key: judgement[key][k].item() for key in ("converged", "stable", *names)},
        }
        | {"octet": crystals.is_octet(crystal.info["formula"])}
        | {"reference": {name: float(crystal.targets[name]) for name in names}}
        for k, crystal in enumerate(some)
    ]
    return {"rows": rows, "seconds": time.monotonic() - began}


def elsewhere(model) -> dict[str, float]:
    """Errors of forces (meV/Å) and energies on DFT frames that have nothing to do with the crystals."""
    sets = workflow.measured(model[0], {"dft": [str(workflow.DATA / "materials_pbeu" / "validation.extxyz.gz")]})
    return workflow.errors(*model, sets["dft"], workflow.energy_shift(*model, sets["dft"]))


def judged(model, files: dict[str, str]) -> dict[str, Any]:
    """All that is compared of a model: crystals with numbers of DFT or of the teacher, forces elsewhere."""
    wanted = {"elastic": TARGETS, "heat": HEAT, "labelled": TARGETS, "labelled_heat": HEAT}
    rows = {name: measured(model, files[name], targets)["rows"] for name, targets in wanted.items()}
    return rows | {"elsewhere": elsewhere(model)}


def tuned(study: str, seed: int, files: dict[str, str], work: Path, options) -> dict[str, Any]:
    """One run of fine-tuning, and what its best model gives."""
    began = time.monotonic()
    of = STUDIES[study]
    parts = labelled(study, seed, work)
    config = settings(
        {"crystals": [parts["train"]], "validation": [parts["validation"]]},
        of.targets,
        work / f"tuned_{study.replace(' ', '_')}_{seed}",
        seed=seed,
        epochs=options.epochs,
        schedule={"start_lr": of.rate},
        replay={"files": [parts["replay"]], "weight": 1.0},
    )
    engine.follow(properties.prepare(config, resume=True), lambda event: show(event, study, seed))
    best = checkpoints.load(Path(config.output) / folder.BEST, HEAD, np.float32)
    curve = [one.errors | {"step": one.step, "best": one.best} for one in properties.validations(Path(config.output))]
    held_out = [atoms.info["formula"] for atoms in ase.io.read(parts["held_out"], ":")]
    run = {"study": study, "seed": seed, "held_out": held_out, "validations": curve, **judged(best, files)}
    return run | {"seconds": time.monotonic() - began}


def show(event, study: str, seed: int) -> None:
    """A line for each validation."""
    if isinstance(event, engine.RunRecord) and event.validation:
        numbers = {key: round(x, 4) for key, x in event.validation.items() if isinstance(x, float)}
        console.print(f"{study}, seed {seed}, step {event.step}: {numbers}", soft_wrap=True)


# ---- report


def report(work: Path, to: Path) -> None:
    """Tables, plot and results.json of what is finished."""
    finished = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    if "base" not in finished:
        console.print(f"{work}: nothing is finished yet.")
        return
    seconds = sum(one.get("seconds", 0) for one in finished.values())
    results = workflow.facts("python -m experiments.properties.run", seconds)
    results |= {"model": BASE, "base": finished["base"]}
    results["tuned"] = [run for name, run in finished.items() if name.startswith("tuned_")]
    to.mkdir(exist_ok=True)
    parity(to / "parity.png", results)
    tables = [against_dft(results["base"]), *(tuned_table(results, study) for study in STUDIES)]
    workflow.write_report(to, results, "\n\n".join(table for table in tables if table))


def usable(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(model, reference) of the crystals that converged and are stable."""
    pairs = [(row[name], row["reference"][name]) for row in rows if row["converged"] and row["stable"]]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)


def errors_of(rows: list[dict], names: tuple[str, ...]) -> list[str]:
    """Mean absolute errors of properties, median relative ones in brackets."""
    cells = []
    for name in names:
        model, known = usable(rows, name)
        away = np.abs(model - known)
        cells.append(f"{away.mean():.3g} ({100 * np.median(away / known):.0f} %)" if len(known) else "-")
    return cells


def counts(rows: list[dict]) -> list[Any]:
    """Crystals, share that did not converge, share that is unstable."""
    lost = np.mean([not row["converged"] for row in rows])
    return [len(rows), f"{100 * lost:.0f} %", f"{100 * unstable(rows):.0f} %"]


def unstable(rows: list[dict]) -> float:
    """The share of crystals that converged and have a negative eigenvalue or an imaginary frequency."""
    return float(np.mean([row["converged"] and not row["stable"] for row in rows]))


def against_dft(base: dict[str, Any]) -> str:
    """The shipped model and its teacher beside DFT."""
    path = HERE / "teacher.json"
    models = {"small": base} | ({"Nequix MP-1": json.loads(path.read_text())} if path.is_file() else {})
    shares = ["", "crystals", "not converged", "unstable"]
    elastic, heat = (
        [[name, *counts(of[kind]), *errors_of(of[kind], names)] for name, of in models.items() if kind in of]
        for kind, names in (("elastic", NAMES), ("heat", (HEAT_CAPACITY,)))
    )
    known = np.array([row["reference"][HEAT_CAPACITY] for row in base["heat"]])
    heat.append(["3R for every atom", len(known), "", "", f"{np.abs(DULONG_PETIT - known).mean():.3g}"])
    return "\n\n".join(
        [
            workflow.markdown([*shares, "volume (Å³/atom)", "K (GPa)", "G (GPa)"], elastic),
            workflow.markdown([*shares, "C (J/mol/K)"], heat),
        ]
    )


def tuned_table(results: dict[str, Any], study: str) -> str:
    """Errors before and after, of crystals that both models relax to stable ones; mean and range over the seeds."""
    runs, base = [run for run in results["tuned"] if run["study"] == study], results["base"]
    if not runs:
        return ""
    lines = []
    for kind, groups in GROUPS.items():
        for group, chosen in groups.items():
            pairs = [(chosen(base[kind], run), chosen(run[kind], run)) for run in runs]
            sizes = sorted({len(before) for before, _ in pairs})
            label = f"{group} ({'-'.join(map(str, sizes[:: max(1, len(sizes) - 1)]))})"
            for name in (HEAT_CAPACITY,) if "heat" in kind else NAMES:
                absolute, relative = zip(*(paired(*pair, name) for pair in pairs), strict=True)
                lines.append([label, name, *changed(absolute, 2), *changed(relative, 1)])
            shares = [(100 * unstable(before), 100 * unstable(after)) for before, after in pairs]
            lines.append([label, "imaginary frequencies (%)" if "heat" in kind else "unstable (%)", *changed(shares)])
    forces = [(base["elsewhere"]["rmse_f"], run["elsewhere"]["rmse_f"]) for run in runs]
    lines.append(["DFT frames elsewhere", "forces, RMSE (meV/Å)", *changed(forces)])
    header = ["crystals", "of", "MAE before", f"after, mean (range) of {len(runs)} seeds", "change (%)"]
    header += ["median relative error (%) before", "after", "change (%)"]
    body = [line + [""] * (len(header) - len(line)) for line in lines]
    return f"**Fine-tuned on {study} of {N_TRAIN} compounds**\n\n" + workflow.markdown(header, body)


def changed(pairs: Sequence[tuple[float, float]], digits: int = 0) -> list[str]:
    """Means over the seeds before and after, and the change in %; the last two with their range."""
    before, after = np.array(pairs, float).T
    change = 100 * (after / before - 1) if before.all() else np.full(1, np.nan)
    mean = f"{before.mean():.{digits}f}"
    return [mean, workflow.mean_range(after, digits), workflow.mean_range(change)]


def held_out(rows: list[dict], run: dict) -> list[dict]:
    """The labelled crystals that a run saw nothing of."""
    return [row for row in rows if row["formula"] in run["held_out"]]


def octet(rows: list[dict], run: dict) -> list[dict]:
    """The benchmark's crystals of the kind that is trained on."""
    return [row for row in rows if row["octet"]]


def others(rows: list[dict], run: dict) -> list[dict]:
    """The benchmark's other crystals."""
    return [row for row in rows if not row["octet"]]


TEACHER, OCTET, OTHERS = "held-out compounds, teacher's", "octet compounds, DFT's", "other crystals, DFT's"
GROUPS = {
    "labelled": {TEACHER: held_out},
    "labelled_heat": {TEACHER: held_out},
    "elastic": {OCTET: octet, OTHERS: others},
    "heat": {OCTET: octet, OTHERS: others},
}


def paired(before: list[dict], after: list[dict], name: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean absolute and median relative errors (%) before and after, over the crystals that are usable in both."""
    both = [
        (abs(a[name] - a["reference"][name]), abs(b[name] - b["reference"][name]), a["reference"][name])
        for a, b in zip(before, after, strict=True)
        if a["converged"] and a["stable"] and b["converged"] and b["stable"]
    ]
    if not both:
        return (np.nan, np.nan), (np.nan, np.nan)
    *errors, known = np.array(both).T
    first, second = errors
    relative = (float(np.median(100 * error / known)) for error in errors)
    return (float(first.mean()), float(second.mean())), tuple(relative)


def parity(path: Path, results: dict[str, Any]) -> None:
    """Model against DFT: volume, K, G, heat capacity."""
    labels = ("volume (Å³/atom)", "K (GPa)", "G (GPa)", "C at 300 K (J/mol/K)")
    kinds = ("elastic", "elastic", "elastic", "heat")
    first = {run["study"]: run for run in reversed(results["tuned"])}
    caption = "Blue: small; red: fine-tuned on moduli (C: on force constants), one seed. Stable, converged crystals."
    with style.figure(path, (3.7, 3.6), (1, len(labels)), caption=caption) as figures:
        for axes, name, label, kind in zip(figures, (*NAMES, HEAT_CAPACITY), labels, kinds, strict=True):
            model, dft = usable(results["base"][kind], name)
            low, high = (min(model.min(), dft.min()), max(model.max(), dft.max())) if len(dft) else (0, 1)
            margin = 0.05 * (high - low)
            limits = (low - margin, high + margin)
            axes.plot(limits, limits, color=style.GREY, linewidth=1)
            axes.scatter(dft, model, s=12, color=PROPERTIES["small"])
            if run := first.get("force constants" if kind == "heat" else "moduli"):
                model, dft = usable(run[kind], name)
                axes.scatter(dft, model, s=12, color=PROPERTIES["fine-tuned"])
            axes.set(xlabel=f"DFT: {label}", ylabel=f"model: {label}", xlim=limits, ylim=limits)


if __name__ == "__main__":
    main()
