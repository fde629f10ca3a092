"""Volumes, moduli and heat capacities of the shipped model beside DFT, and fine-tuning on the moduli of 30 crystals.

python -m experiments.properties.teacher                    # labels (with chgnet; they are stored here)
python -m experiments.properties.run                        # all; goes on where it stopped
python -m experiments.properties.run --report               # tables and plot of what is finished
"""

import json
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from experiments import workflow
from experiments.look import PROPERTIES
from experiments.properties import crystals
from experiments.properties.crystals import HERE, LABELS
from lamjax import checkpoints
from lamjax.evaluation.errors import predictions
from lamjax.reports import console, style
from lamjax.system import to_ase
from lamjax.training import engine, folder, properties, properties_judge
from lamjax.training.properties_data import loss_on, pack, read_crystals

BASE, HEAD = "small", "nequix"
N_TRAIN = 30
MOST = 4  # atoms of the benchmark's crystals that are computed: one compiled program
MODULI = ("bulk_modulus", "shear_modulus")
TARGETS = [{"name": name, "scale": None} for name in ("volume_per_atom", *MODULI)]
HEAT = [{"name": "heat_capacity_per_atom", "scale": None}]
REPLAYED = 200  # frames whose forces the base itself gives


def main() -> None:
    parser = workflow.arguments(__doc__, HERE, seeds=range(5))
    parser.add_argument("--held-out", type=int, default=150, help="crystals of the elastic benchmark, of few atoms")
    parser.add_argument("--heat", type=int, default=40, help="crystals of the phonon benchmark, of few atoms")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=2e-4)
    options = parser.parse_args()
    work = options.work / "properties"
    if not options.report:
        workflow.begin(options.work, options.cache)
        files = prepared(work, options)
        base = checkpoints.load(BASE, HEAD, np.float32)
        workflow.once(work / "elastic.json", lambda: measured(base, files["elastic"], TARGETS))
        workflow.once(work / "elsewhere.json", lambda: elsewhere(base))
        for seed in options.seeds:
            workflow.once(work / f"tuned_{seed}.json", lambda seed=seed: tuned(seed, files, work, options))
        if options.heat:
            workflow.once(work / "heat.json", lambda: measured(base, files["heat"], HEAT))
    report(work)


def prepared(work: Path, options) -> dict[str, str]:
    """The crystals as files with targets: of the benchmarks, and those of the teacher to train on and to choose by."""
    work.mkdir(parents=True, exist_ok=True)
    elastic = [with_volume(atoms) for atoms in crystals.elastic() if len(atoms) <= MOST][: options.held_out]
    heat = [with_heat(atoms) for atoms in crystals.phonon() if len(atoms) <= MOST][: options.heat]
    labelled = ase.io.read(LABELS, ":")
    for atoms in labelled:
        atoms.info["volume_per_atom"] = atoms.info.pop("volume") / len(atoms)
    sets = {"elastic": elastic, "heat": heat, "train": labelled[:N_TRAIN], "validation": labelled[N_TRAIN:]}
    for name, some in sets.items():
        ase.io.write(work / f"{name}.extxyz", some)
    if not (work / "replay.extxyz").is_file():
        ase.io.write(work / "replay.extxyz", replayed())
    return {name: str(work / f"{name}.extxyz") for name in (*sets, "replay")}


def with_volume(atoms):
    """The crystal with the volume that DFT relaxed it to as a further target."""
    atoms.info["volume_per_atom"] = atoms.get_volume() / len(atoms)
    return atoms


def with_heat(atoms):
    """The crystal with its heat capacity for an atom."""
    atoms.info["heat_capacity_per_atom"] = atoms.info.pop("heat_capacity_J_molK") / len(atoms)
    return atoms


def replayed() -> list:
    """Crystals of the training data with the energies, forces and virials that the base itself gives them."""
    potential, params = checkpoints.load(BASE, HEAD, np.float32)
    every = workflow.measured(potential, {"train": [str(workflow.DATA / "materials_pbeu" / "train.extxyz.gz")]})[
        "train"
    ]
    some = workflow.selection(every, np.random.default_rng(0).permutation(len(every.frames))[:REPLAYED])
    labelled = []
    for frame, one in zip(some.frames, predictions(potential, params, some.packed, workflow.BATCH), strict=True):
        atoms = to_ase(frame.system)
        atoms.info |= {"REF_energy": float(one.energy), "REF_virial": np.asarray(one.virial)}
        atoms.set_array("REF_forces", np.asarray(one.forces))
        labelled.append(atoms)
    return labelled


def settings(files: dict[str, str], targets: list, output: Path, **more: Any) -> properties.PropertyTuneConfig:
    """A config of `lamjax finetune-properties`."""
    content = {"base": BASE, "head": HEAD, "targets": targets, "output": str(output), "max_programs": 1, **files}
    return properties.read_config(None, {"batch_size": 5, "relax": {"fmax": 5e-3, "max_steps": 300}, **more} | content)


def measured(model, file: str, targets: list) -> dict[str, Any]:
    """Properties of every crystal of a file, relaxed with a model, and its DFT numbers."""
    began = time.monotonic()
    config = settings({"crystals": [file], "validation": [file]}, targets, Path("unused"))
    potential, params = model
    some = read_crystals(config, config.crystals, potential)
    loss = loss_on(config, some)
    (packed,) = pack(config, potential, loss, [some])
    judgement = properties_judge.judge(
        potential, params, properties_judge.HeldOut(some, packed, loss, config.batch_size)
    )
    names = [target["name"] for target in targets]
    rows = [
        {"name": properties_judge.crystal_name(crystal), "formula": str(crystal.info["formula"])}
        | {
            "n_atoms": crystal.system.n_atoms,
            **{key: judgement[key][k].item() for key in ("converged", "stable", *names)},
        }
        | {"dft": {name: float(crystal.targets[name]) for name in names}}
        for k, crystal in enumerate(some)
    ]
    return {"rows": rows, "seconds": time.monotonic() - began}


def elsewhere(model) -> dict[str, float]:
    """Errors of forces (meV/Å) and energies on DFT frames that have nothing to do with the crystals."""
    sets = workflow.measured(model[0], {"dft": [str(workflow.DATA / "materials_pbeu" / "validation.extxyz.gz")]})
    return workflow.errors(*model, sets["dft"], workflow.energy_shift(*model, sets["dft"]))


def tuned(seed: int, files: dict[str, str], work: Path, options) -> dict[str, Any]:
    """One run of fine-tuning, and what its best model gives for the benchmark and elsewhere."""
    began = time.monotonic()
    config = settings(
        {"crystals": [files["train"]], "validation": [files["validation"]]},
        TARGETS,
        work / f"tuned_{seed}",
        seed=seed,
        epochs=options.epochs,
        schedule={"start_lr": options.rate},
        replay={"files": [files["replay"]], "weight": 1.0},
    )
    engine.follow(properties.prepare(config, resume=True), lambda event: print_validation(event, seed))
    best = checkpoints.load(Path(config.output) / folder.BEST, HEAD, np.float32)
    judged = [one.errors | {"step": one.step, "best": one.best} for one in properties.validations(Path(config.output))]
    results = {"seed": seed, "validations": judged, "elastic": measured(best, files["elastic"], TARGETS)}
    return results | {"elsewhere": elsewhere(best), "seconds": time.monotonic() - began}


def print_validation(event, seed: int) -> None:
    """A line for each validation."""
    if isinstance(event, engine.RunRecord) and event.validation:
        numbers = {key: round(x, 4) for key, x in event.validation.items() if isinstance(x, float)}
        console.print(f"seed {seed}, step {event.step}: {numbers}", soft_wrap=True)


# ---- report


def report(work: Path) -> None:
    """Tables, plot and results.json of what is finished."""
    finished = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    if "elastic" not in finished:
        console.print(f"{work}: nothing is finished yet.")
        return
    results = workflow.facts(
        "python -m experiments.properties.run", sum(x.get("seconds", 0) for x in finished.values())
    )
    results |= {"base": BASE, "elastic": finished["elastic"]["rows"], "elsewhere": finished.get("elsewhere")}
    results |= {
        "heat": finished.get("heat", {}).get("rows"),
        "tuned": [x for k, x in finished.items() if "tuned_" in k],
    }
    tables = [against_dft(results), tuned_table(results)]
    parity(HERE / "parity.png", results)
    workflow.write_report(HERE, results, "\n\n".join(table for table in tables if table))


def usable(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(model, DFT) of the crystals that converged and are stable."""
    pairs = [(row[name], row["dft"][name]) for row in rows if row["converged"] and row["stable"]]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)


def errors_of(rows: list[dict], names: tuple[str, ...]) -> list[str]:
    """Mean absolute errors of properties, median relative ones in brackets."""
    cells = []
    for name in names:
        model, dft = usable(rows, name)
        away = np.abs(model - dft)
        cells.append(f"{away.mean():.3g} ({100 * np.median(away / dft):.0f} %)" if len(dft) else "-")
    return cells


def against_dft(results: dict[str, Any]) -> str:
    """The shipped model and its teacher beside DFT; no model: the mean of the benchmark."""
    rows, columns = results["elastic"], ("volume_per_atom", *MODULI)
    header = ["", "crystals", "not converged", "unstable", "volume (Å³/atom)", "K (GPa)", "G (GPa)"]
    lines = [["small", *counts(rows), *errors_of(rows, columns)]]
    if teacher := beside():
        few = {row["name"]: row for row in rows}
        both = [name for name in teacher if name in few]
        if both:
            lines.append(["small, as the teacher", *counts(own := [few[n] for n in both]), *errors_of(own, columns)])
        lines.append(["CHGNet 0.3.0", *counts(own := [teacher[n] for n in both]), *errors_of(own, columns)])
    tables = [workflow.markdown(header, lines)]
    if results["heat"]:
        heat = results["heat"]
        own = ["small", *counts(heat), *errors_of(heat, ("heat_capacity_per_atom",))]
        dft = np.array([row["dft"]["heat_capacity_per_atom"] for row in heat])
        nothing = ["3R for every atom", len(heat), "", "", f"{np.abs(24.943 - dft).mean():.3g}"]
        tables.append(workflow.markdown(["", "crystals", "not converged", "unstable", "C (J/mol/K)"], [own, nothing]))
    return "\n\n".join(tables)


def counts(rows: list[dict]) -> list[Any]:
    """Crystals, share that did not converge, share that is unstable."""
    lost = np.mean([not row["converged"] for row in rows])
    unstable = np.mean([row["converged"] and not row["stable"] for row in rows])
    return [len(rows), f"{100 * lost:.0f} %", f"{100 * unstable:.0f} %"]


def beside() -> dict[str, dict]:
    """What teacher.py measured of crystals of the benchmark, as rows of `measured`."""
    path = HERE / "teacher.json"
    records = json.loads(path.read_text())["beside"] if path.is_file() else []
    rows = {}
    for atoms, record in zip(crystals.elastic(), records, strict=False):
        dft = {name: float(atoms.info[f"{name}_GPa"]) for name in MODULI}
        dft["volume_per_atom"] = atoms.get_volume() / len(atoms)
        row = {"converged": record["converged"], "stable": record.get("stable", False), "dft": dft}
        row |= {name: record.get(name, np.nan) for name in MODULI}
        rows[str(atoms.info["config_id"])] = row | {"volume_per_atom": record.get("volume", np.nan) / len(atoms)}
    return rows


def tuned_table(results: dict[str, Any]) -> str:
    """Errors before and after, of crystals that both models relax to stable ones; mean and range over the seeds."""
    runs = results["tuned"]
    if not runs:
        return ""
    header = ["", "before", f"after, mean (range) of {len(runs)} seeds", "change"]
    lines = []
    for name in ("volume_per_atom", *MODULI):
        pairs = [paired(results["elastic"], run["elastic"]["rows"], name) for run in runs]
        before, after = (np.array(x) for x in zip(*pairs, strict=True))
        change = 100 * (after / before - 1)
        lines.append([f"{name}, MAE", workflow.mean_range(before, 2), workflow.mean_range(after, 2)])
        lines[-1].append(f"{workflow.mean_range(change)} %")
    if results["elsewhere"]:
        before = results["elsewhere"]["rmse_f"]
        after = [run["elsewhere"]["rmse_f"] for run in runs]
        change = workflow.mean_range([100 * (x / before - 1) for x in after], 1)
        lines.append(["forces elsewhere, RMSE (meV/Å)", f"{before:.0f}", workflow.mean_range(after), f"{change} %"])
    return workflow.markdown(header, lines)


def paired(before: list[dict], after: list[dict], name: str) -> tuple[float, float]:
    """Mean absolute errors of a property over the crystals that are usable before and after."""
    both = [
        (abs(a[name] - a["dft"][name]), abs(b[name] - b["dft"][name]))
        for a, b in zip(before, after, strict=True)
        if a["converged"] and a["stable"] and b["converged"] and b["stable"]
    ]
    return tuple(np.mean(both, axis=0).tolist())


def parity(path: Path, results: dict[str, Any]) -> None:
    """Model against DFT: volume, K, G, and heat capacity where there is one."""
    panels = [("volume_per_atom", "volume (Å³/atom)", results["elastic"])]
    panels += [("bulk_modulus", "K (GPa)", results["elastic"]), ("shear_modulus", "G (GPa)", results["elastic"])]
    if results["heat"]:
        panels.append(("heat_capacity_per_atom", "C at 300 K (J/mol/K)", results["heat"]))
    tuned = results["tuned"]
    caption = "Blue: small; red: fine-tuned on elastic data, seed 0, held-out crystals. Stable, converged crystals."
    with style.figure(path, (3.7, 3.6), (1, len(panels)), caption=caption) as figures:
        for axes, (name, label, rows) in zip(figures, panels, strict=True):
            model, dft = usable(rows, name)
            low, high = (min(model.min(), dft.min()), max(model.max(), dft.max())) if len(dft) else (0, 1)
            margin = 0.05 * (high - low)
            limits = (low - margin, high + margin)
            axes.plot(limits, limits, color=style.GREY, linewidth=1)
            axes.scatter(dft, model, s=12, color=PROPERTIES["small"])
            if tuned and rows is results["elastic"]:
                model, dft = usable(tuned[0]["elastic"]["rows"], name)
                axes.scatter(dft, model, s=12, color=PROPERTIES["fine-tuned"])
            axes.set(xlabel=f"DFT: {label}", ylabel=f"model: {label}", xlim=limits, ylim=limits)


if __name__ == "__main__":
    main()
