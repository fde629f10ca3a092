"""What the experiments on many data sets share: data, model, training runs that can be killed, errors, reports."""

import argparse
import functools
import gzip
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ase.data
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from lamjax import PotentialConfig, checkpoints, data, edit, losses, training
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig
from lamjax.evaluation.errors import predictions
from lamjax.files import locked
from lamjax.heads import EnergyHeadConfig
from lamjax.neighbors import Shell
from lamjax.reports import console
from lamjax.training import engine
from lamjax.training import labels as label_runs
from lamjax.training.config import TaskConfig, TrainConfig

DATA = Path(__file__).parent / "data"
ELEMENTS = (*ase.data.chemical_symbols[1:84], "Ac", "Th", "Pa", "U", "Np", "Pu")  # those of materials_pbeu
BATCH = "auto:256"  # structures in one go when nothing is trained
HEAD = "head"  # what the only head of a model is called: equal names let equal models share their programs

DESCRIPTOR = DPA2Config(
    repinit=RepinitConfig(rcut=5.0, rcut_smth=0.5, nsel=100, neuron=(16, 32, 64), axis_neuron=8),
    repformer=RepformerConfig(
        rcut=4.0,
        rcut_smth=3.0,
        nsel=60,
        nlayers=3,
        g1_dim=64,
        g2_dim=16,
        update_g1_has_attn=False,
        update_g2_has_g1g1=False,
        update_g2_has_attn=False,
        update_style="res_residual",
        update_residual=0.01,
    ),
)
LOSS = losses.LabelLossConfig(
    start_pref_e=0.2, limit_pref_e=20.0, start_pref_f=100.0, limit_pref_f=60.0, start_pref_v=0.02, limit_pref_v=0.1
)


class PretrainingSet(NamedTuple):
    """A task of pre-training: one level of theory, one head."""

    train: tuple[str, ...]  # files below experiments/data
    validation: tuple[str, ...]
    probability: float  # of a step of the multi-task run
    level: str


class DownstreamSet(NamedTuple):
    """Data that no pre-training run sees."""

    train: str
    tests: dict[str, str]
    level: str


class Size(NamedTuple):
    """How large the experiments are: as they are reported, or to see in seconds that they run."""

    name: str
    model: DPA2Config
    neuron: tuple[int, ...]  # of the heads
    max_programs: int  # shapes of a pre-training run
    most_frames: int | None  # of a file
    tasks: tuple[str, ...]  # of the multi-task run


PRETRAINING = {
    "materials": PretrainingSet(
        ("materials_pbeu/train",), ("materials_pbeu/validation",), 0.30, "PBE/PBE+U, VASP, 89 elements"
    ),
    "pbe": PretrainingSet(
        ("pbe_main_group/train", "metals_pbe/train"),
        ("pbe_main_group/test", "metals_pbe/validation"),
        0.25,
        "PBE, VASP, semiconductors, metals, main-group compounds",
    ),
    **{
        f"oxides_{xc}": PretrainingSet(
            (f"oxides_bo2/{xc}_train",), (f"oxides_bo2/{xc}_validation",), 0.05, f"{functional}, VASP, dioxides"
        )
        for xc, functional in (("pbe", "PBE"), ("pbesol", "PBEsol"), ("lda", "LDA"))
    },
    "wb97x": PretrainingSet(
        ("dimers_wb97x/train",), ("dimers_wb97x/validation",), 0.10, "wB97X/6-31G(d), molecular dimers"
    ),
    "gfn2xtb": PretrainingSet(
        ("dimers_gfn2xtb/train",), ("dimers_gfn2xtb/validation",), 0.20, "GFN2-xTB, molecular dimers"
    ),
}
DOWNSTREAM = {
    "tio2": DownstreamSet("tio2_pbe_qe/train", {"test": "tio2_pbe_qe/test"}, "PBE, Quantum ESPRESSO"),
    "acac": DownstreamSet(
        "acac_pbed3/train",
        {"300 K": "acac_pbed3/test_300K", "600 K": "acac_pbed3/test_600K"},
        "UHF PBE+D3, ORCA; trained at 300 K",
    ),
    "mgypo4": DownstreamSet("mgypo4_pbe/train", {"held-out runs": "mgypo4_pbe/test"}, "PBE, VASP, relaxations"),
    "si_defects": DownstreamSet(
        "../../lamjax/assets/demo/si_defects_train",
        {"held-out runs": "../../lamjax/assets/demo/si_defects_heldout"},
        "LDA, Quantum ESPRESSO, relaxations",
    ),
}
FULL = Size("full", DESCRIPTOR, (64, 64, 64), 6, None, tuple(PRETRAINING))
QUICK = Size(
    "quick",
    replace(
        DESCRIPTOR,
        repinit=RepinitConfig(rcut=3.0, rcut_smth=0.5, nsel=20, neuron=(4, 8), axis_neuron=2),
        repformer=replace(DESCRIPTOR.repformer, rcut=2.5, rcut_smth=1.5, nsel=12, nlayers=1, g1_dim=8, g2_dim=4),
    ),
    (8,),
    1,
    12,
    ("materials", "gfn2xtb"),
)


def arguments(description: str, folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    work = folder.parents[1] / "build" / "experiments"
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--work", type=Path, default=work, help="runs, models and one JSON file for each finished run")
    parser.add_argument("--cache", type=Path, help="compiled programs (default: below --work)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: does it run at all?")
    parser.add_argument("--report", action="store_true", help="train nothing, only report the finished runs")
    return parser


def command_line(description: str, here: Path, steps: Any) -> argparse.Namespace:
    """The options of a script that trains, with the `size` that --quick chooses; sets the cache of compilations."""
    parser = arguments(description, here)
    parser.add_argument("--steps", type=int, help=f"of every run (default: {steps})")
    given = parser.parse_args()
    begin(given.work, given.cache)
    given.size = QUICK if given.quick else FULL
    if given.quick:
        given.seeds, given.steps = given.seeds[:1], given.steps or 3
    return given


def begin(work: Path, cache: Path | None) -> None:
    """Energies are summed in float64, and a program is compiled once for all runs."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    compilation_cache.set_cache_dir(str(cache or work / "programs"))


def model(size: Size, heads: Iterable[str]) -> PotentialConfig:
    """The model of all runs; only the names of the heads differ."""
    return PotentialConfig(ELEMENTS, size.model, tuple((name, EnergyHeadConfig(neuron=size.neuron)) for name in heads))


def files(size: Size, work: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The files of the data, cut short for a small size."""
    paths = [DATA / f"{name}.extxyz.gz" for name in names]
    if size.most_frames is None:
        return tuple(map(str, paths))
    return tuple(
        subset(path, range(size.most_frames), work / "data" / f"{path.parent.name}_{path.name}") for path in paths
    )


def frames(path: str | Path) -> list[str]:
    """The frames of a compressed extxyz file as the text that they are."""
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines(keepends=True)
    texts, k = [], 0
    while k < len(lines):
        n = int(lines[k]) + 2
        texts.append("".join(lines[k : k + n]))
        k += n
    return texts


def write_frames(to: Path, chosen: Iterable[str]) -> str:
    """A compressed extxyz file of such frames."""
    checkpoints.write_atomically(to, gzip.compress("".join(chosen).encode(), compresslevel=1, mtime=0))
    return str(to)


def subset(path: str | Path, rows: Iterable[int], to: Path) -> str:
    """Some frames of a file in another one."""
    text = frames(path)
    return write_frames(to, [text[row] for row in rows if row < len(text)])


def largest(paths: Iterable[str], to: Path, shells: Sequence[Shell]) -> str:
    """The frames with the most atoms, and the most neighbours in each shell, of all the files in one.

    A run is given them as its validation for the sake of their shapes. They are displaced as a whole, by 0.001 Å, since
    frames that are trained on as well are no validation.
    """
    text = [one for path in paths for one in frames(path)]
    buckets = [data.plan([frame], shells, 1).buckets[0] for path in paths for frame in data.read(path)]
    shapes = np.array([(bucket.n_atoms, *bucket.capacities) for bucket in buckets])
    return write_frames(to, [_displaced(text[row], 0.001) for row in np.unique(np.argmax(shapes, axis=0))])


def _displaced(frame: str, by: float) -> str:
    """The text of a frame with all atoms moved along x (Å); its columns begin with species and position."""
    count, header, *rows = frame.splitlines()
    moved = [f"{name} {float(x) + by:.8f} {rest}" for name, x, rest in (row.split(maxsplit=2) for row in rows)]
    return "\n".join([count, header, *moved, ""])


def tasks(size: Size, work: Path, names: Sequence[str]) -> dict[str, TaskConfig]:
    """The tasks of a pre-training run."""
    chosen = {name: PRETRAINING[name] for name in names}
    return {name: TaskConfig(files(size, work, one.train), probability=one.probability) for name, one in chosen.items()}


def train(config: TrainConfig, curve: list[tuple[int, float]] | None = None) -> tuple[engine.Run, float]:
    """Train to the end, from where an earlier process stopped; the run and the seconds that this process took.

    `curve` is given (step, force RMSE in eV/Å) of every validation of the only task.
    """
    began = time.monotonic()
    run = label_runs.prepare(config, resume=True)
    for event in engine.events(run):
        if isinstance(event, engine.RunRecord):
            error = ", ".join(f"{key} {1000 * value:.0f}" for key, value in event.train.items() if "rmse_f" in key)
            where = f"{config.output}: step {event.step}/{config.steps}, {event.seconds:.0f} s"
            console.print(f"{where}, {error} meV/Å", soft_wrap=True)
            if curve is not None and event.validation:
                curve.append((event.step, event.validation["rmse_f"]))
    return run, time.monotonic() - began


def one_head(potential, params, name: str):
    """The model with that head alone, under the name that all such models have in common."""
    potential, params = edit.select_heads(potential, params, name)
    return edit.rename_head(potential, params, name, HEAD) if name != HEAD else (potential, params)


class Measured(NamedTuple):
    """Labelled frames with the arrays that a model takes."""

    frames: list[data.Frame]
    packed: data.Packed


def measured(potential, sets: dict[str, Sequence[str]], max_programs: int = 1) -> dict[str, Measured]:
    """Several lists of files, packed into shapes that they share."""
    read = {name: data.read(paths) for name, paths in sets.items()}
    everything = [frame for frames in read.values() for frame in frames]
    shapes = data.plan(everything, potential.shells, max_programs, batch_size=BATCH)
    return {name: Measured(frames, data.pack(frames, shapes, np.float32)) for name, frames in read.items()}


def selection(labelled: Measured, rows: Iterable[int]) -> Measured:
    """Those frames alone, in the same shapes."""
    frames = [labelled.frames[row] for row in rows]
    return Measured(frames, data.pack(frames, labelled.packed.plan, np.float32))


def compositions(frames: Sequence[data.Frame]) -> np.ndarray:
    """Number of atoms of each atomic number, (n_frames, 119)."""
    return np.array([np.bincount(frame.system.numbers, minlength=119) for frame in frames], float)


def labels(frames: Sequence[data.Frame]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compositions, energies (n_frames,) eV and the components of all forces (n,) eV/Å."""
    energies = np.array([float(frame.labels.energy) for frame in frames])
    return compositions(frames), energies, np.concatenate([np.ravel(frame.labels.forces) for frame in frames])


def differences(potential, params, labelled: Measured) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prediction minus label: total energies (n_frames,) eV and forces of every frame (n_atoms, 3) eV/Å."""
    predicted = predictions(potential, params, labelled.packed, BATCH)
    energies = np.array(
        [float(p.energy) - float(f.labels.energy) for p, f in zip(predicted, labelled.frames, strict=True)]
    )
    return energies, [p.forces - f.labels.forces for p, f in zip(predicted, labelled.frames, strict=True)]


def errors(potential, params, labelled: Measured, shift: np.ndarray | None = None) -> dict[str, float]:
    """RMSE and MAE of energies (meV/atom) and forces (meV/Å), after an energy per element (119,) is subtracted."""
    energies, forces = differences(potential, params, labelled)
    counts = compositions(labelled.frames)
    if shift is not None:
        energies = energies - counts @ shift
    energies, forces = 1000 * energies / counts.sum(axis=1), 1000 * np.concatenate([np.ravel(f) for f in forces])
    components = {"e": energies, "f": forces}
    rmse = {f"rmse_{key}": float(np.sqrt(np.mean(x**2))) for key, x in components.items()}
    return rmse | {f"mae_{key}": float(np.mean(np.abs(x))) for key, x in components.items()}


def energy_shift(potential, params, labelled: Measured) -> np.ndarray:
    """The least-squares energy per element (119,) eV of prediction minus label."""
    return np.linalg.lstsq(compositions(labelled.frames), differences(potential, params, labelled)[0], rcond=None)[0]


def best_head(potential, params, names: Sequence[str], labelled: Measured) -> tuple[str, dict[str, float]]:
    """The head with the least RMSE of forces, and that of all of them (meV/Å)."""
    force_errors = {}
    for name in names:
        forces = differences(*one_head(potential, params, name), labelled)[1]
        force_errors[name] = float(1000 * np.sqrt(np.mean(np.concatenate([np.ravel(f) for f in forces]) ** 2)))
    return min(force_errors, key=force_errors.get), force_errors


def once(path: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Makes a JSON file unless it is there or another process is about to; what is half done is taken up."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if (lock := locked(path.with_suffix(".lock"))) is None:
        return
    with lock:
        if not path.is_file():
            checkpoints.write_atomically(path, json.dumps(make(), indent=1).encode())
            console.print(f"finished {path}", soft_wrap=True)


def restore(runs: Iterable[dict[str, Any]], folder: Path, name: Callable[[dict[str, Any]], str]) -> None:
    """Write the results of runs that were reported before as if they had been made here; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in runs:
        if not (file := folder / f"{name(one)}.json").is_file():
            checkpoints.write_atomically(file, json.dumps(one, indent=1).encode())


def collect(folder: Path, names: Iterable[str]) -> list[dict[str, Any]] | None:
    """The results of all these runs, or None (and a line that says so) as long as some are not finished."""
    missing = [name for name in names if not (folder / f"{name}.json").is_file()]
    if missing:
        console.print(f"{folder}: {len(missing)} runs are not finished, no report yet: {', '.join(missing[:6])} ...")
        return None
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


@functools.cache
def shipped() -> str:
    """The SHA-256 of the model that comes with lamjax: runs that begin from another one are other runs."""
    return digest(checkpoints.SHIPPED / "small.lamjax")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reported(path: Path, base: str | None = None) -> tuple[dict[str, Any], bool]:
    """The content of a results.json, empty without one, and whether its runs began from a model of this SHA-256.

    By default that is the model shipped now.
    """
    content = json.loads(path.read_text()) if path.is_file() else {}
    return content, content.get("base") == (base or shipped())


def facts(command: str, seconds: float) -> dict[str, Any]:
    """What made a result."""
    packages = ("lamjax", "jax", "jaxlib", "numpy", "optax")
    return {
        "command": command,
        "core_minutes": round(seconds / 60, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": f"{os.cpu_count()} cores {platform.machine()}, {jax.devices()[0].device_kind}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def mean_range(values: Sequence[float], digits: int = 0) -> str:
    """Mean and range over the seeds: "12 (10-15)"; "-3 (-7 to 2)" where one is negative."""
    low, high = min(values), max(values)
    between = " to " if low < 0 else "-"
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f}{between}{high:.{digits}f})"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_report(folder: Path, results: dict[str, Any], tables: str) -> None:
    """results.json, and the tables between the two marks of the README, if the folder has one; they are printed too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    readme = folder / "README.md"
    if readme.is_file():
        before, _, rest = readme.read_text().partition("<!-- table of run.py -->\n")
        after = rest.partition("<!-- end of table -->")[2]
        readme.write_text(f"{before}<!-- table of run.py -->\n{tables}\n<!-- end of table -->{after}")
    print(tables)


def training_settings(steps: int, seed: int, output: Path) -> dict[str, Any]:
    """What all runs of both experiments have in common."""
    return {
        "loss": LOSS,
        "schedule": training.ScheduleConfig("cosine", start_lr=5e-3, stop_lr=1e-5, warmup_steps=min(200, steps // 10)),
        "optimizer": training.OptimizerConfig("muon", max_norm=5.0),
        "steps": steps,
        "batch_size": "auto:96",
        "seed": seed,
        "output": str(output),
        "plots": False,
        "validate_every": steps,
        "print_every": max(1, steps // 20),
        "save_every": max(1, steps // 10),
        "keep": 1,
    }
