"""How much of a DPA-2 that was fine-tuned on DFT does a small student keep, and how much faster is it?

    python -m experiments.distillation.run --water-train data_0 data_1 data_2 --water-test data_3

from the root of the repository; the folders of water are those in examples/water/data of DeePMD-kit's repository
(LGPL, so not in this one), or any other files of such frames. Without them the alloy alone is distilled. The same
command in several shells shares the runs out among them, and a run that was killed goes on. When all are done,
results.json, the table in the README and the plot are written.
"""

import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import jax
import numpy as np
from ase.geometry.rdf import get_rdf

from experiments import workflow
from experiments.distillation import cases, report
from experiments.distillation.cases import CASES, STUDENTS, Case, Effort
from experiments.workflow import DATA
from lamjax import allocate, checkpoints, data, distillation, dynamics, edit, from_ase, predict, pytree, training
from lamjax.distillation import DistillConfig
from lamjax.evaluation.errors import predictions
from lamjax.numerics import compiler_options
from lamjax.potential import PotentialConfig
from lamjax.reports import console
from lamjax.system import to_ase
from lamjax.training.config import TrainConfig, validate

HERE = Path(__file__).parent
BATCH = "auto:192"  # atoms
STEPS = 20  # of a simulation that is timed
TEACHER, DISTILLED, ON_DFT = "teacher", "distilled", "on DFT labels"


class Files(NamedTuple):
    """The data of a case."""

    train: tuple[str, ...]
    test: tuple[str, ...]


class Model(NamedTuple):
    """One model: the teacher, or a student of some kind, made in some way, with a seed."""

    case: str
    way: str  # TEACHER, DISTILLED, ON_DFT
    student: str = ""  # of STUDENTS
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and of the file of its results."""
        return "-".join(str(x).replace(" ", "_") for x in self if x != "")


def models(case_names: Sequence[str], seeds: Sequence[int]) -> list[Model]:
    """All that are compared; the teachers first. Of the smaller DPA-2 one seed."""
    students = [
        Model(case, way, student, seed)
        for student, way, n in (("DPA-1", DISTILLED, None), ("DPA-1", ON_DFT, None), ("smaller DPA-2", DISTILLED, 1))
        for seed in seeds[:n]
        for case in case_names
    ]
    return [Model(case, TEACHER) for case in case_names] + students


def main(sets: dict[str, Files], seeds: list[int], work: Path, effort: Effort, quick: bool, only: bool) -> None:
    wanted = models(list(sets), seeds)
    folder = work / "distillation"
    for model in () if only else wanted:
        if model.way != TEACHER:
            _wait(folder / f"{Model(model.case, TEACHER).name}.json")
        make = functools.partial(measured, model, sets[model.case], work, effort)
        workflow.once(folder / f"{model.name}.json", make)
    results = workflow.collect(folder, [model.name for model in wanted])
    if not results:
        return
    for case in sets:
        first_seed = [model for model in wanted if model.case == case and model.seed == seeds[0]]
        workflow.once(folder / f"{case}-speed.json", functools.partial(timed, first_seed, sets[case], work))
    speeds = workflow.collect(folder, [f"{case}-speed" for case in sets])
    if not speeds:
        return
    for case in () if quick else sets:
        ship(Model(case, TEACHER), results[wanted.index(Model(case, TEACHER))], work)
    report.tell(results, dict(zip(sets, speeds, strict=True)), work / "distillation_report" if quick else HERE)


def measured(model: Model, files: Files, work: Path, effort: Effort) -> dict[str, Any]:
    """Train a model, ask it about held-out DFT, and let it move."""
    began, folder = time.monotonic(), work / "distillation" / model.name
    make = {TEACHER: teacher, DISTILLED: distil, ON_DFT: learn}[model.way]
    facts = make(model, files, work, effort)
    seconds = time.monotonic() - began
    potential, params = checkpoints.load(folder / "model.lamjax", dtype=np.float32)
    return {
        **model._asdict(),
        **facts,
        "seconds": round(seconds, 1),
        "parameters": pytree.n_parameters(params),
        "errors": errors(model, (potential, params), files, work),
        **moved(model, edit.tabulate(potential, params), files, effort),
    }


def ship(model: Model, facts: dict[str, Any], work: Path) -> None:
    """The teacher beside this file, as small as it is; its card says what it was made from."""
    card = {
        "what": f"A small DPA-2, fine-tuned for {model.case}",
        "data": CASES[model.case].level,
        "not good for": "production: a few hundred frames",
        "made by": report.COMMAND,
        "errors on held-out frames (meV/atom, meV/Å)": facts["errors"]["dft"],
    }
    potential, params = checkpoints.load(_path(model, work), dtype=np.float32)
    checkpoints.save(HERE / f"teacher_{model.case}.lamjax", potential, params, card)


def teacher(model: Model, files: Files, work: Path, effort: Effort) -> dict[str, Any]:
    """The small model, fine-tuned on DFT, with the elements of the case alone."""
    case, folder = CASES[model.case], work / "distillation" / model.name
    potential, params = checkpoints.load("small", case.head, dtype=np.float32)
    one = edit.restrict_elements(*workflow.one_head(potential, params, case.head), case.elements)
    checkpoints.save(folder / "base.lamjax", *one)
    steps = effort.teacher_steps or case.steps
    settings = workflow.training_settings(steps, model.seed, folder / "run")
    settings |= {"schedule": training.ScheduleConfig("cosine", start_lr=case.learning_rate, stop_lr=1e-5)}
    settings |= {"batch_size": BATCH, "validate_every": steps}
    config = TrainConfig(
        train=files.train, base=str(folder / "base.lamjax"), bias="change", ema_decay=0.99, max_programs=2, **settings
    )
    workflow.train(config)
    shutil.copyfile(folder / "run" / "model.lamjax", folder / "model.lamjax")
    return {"steps": steps, "labels": len(data.read(files.train))}


def distil(model: Model, files: Files, work: Path, effort: Effort) -> dict[str, Any]:
    """Rounds of `lamjax distill`; DFT is not asked, only the teacher."""
    case, folder = CASES[model.case], work / "distillation" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "labeller": {"type": "potential", "model": str(_path(Model(model.case, TEACHER), work))},
        "start": [_starts(case, files, folder, effort)],
        "student": {
            "model": _model(model),
            "loss": cases.STUDENT_LOSS,
            "schedule": {"type": "cosine", "start_lr": 5e-3, "stop_lr": 1e-4},
            "optimizer": {"name": "muon", "max_norm": 5.0},
            "steps": effort.student_steps,
            "batch_size": BATCH,
            "max_programs": 1,
        },
        "members": effort.members,
        "rounds": effort.rounds,
        "explore": case.explore | {"timestep": case.timestep} | ({} if effort.md_steps is None else {"steps": 40}),
        "trust": case.trust,
        "label": {"most": effort.most, "fresh": effort.fresh},
        "enough": {"deviation": 0.05, "force": 0.02, "energy": 0.0005},
        "seed": model.seed,
        "output": str(folder / "rounds"),
    }
    run, _ = distillation.prepare(validate(content, model.name, DistillConfig), resume=True)
    rounds = []
    for event in distillation.events(run):
        if isinstance(event, distillation.Round):
            rounds.append(event.facts)
            console.print(f"{model.name}: {_progress(event.facts)}", soft_wrap=True)
    distillation.finish(run)
    distillation.write_plot(run, rounds)
    shutil.copyfile(folder / "rounds" / "student.lamjax", folder / "model.lamjax")
    labels = sum(facts["train"] + facts["fresh"] for facts in rounds)
    return {"steps": effort.rounds * effort.student_steps, "labels": labels, "rounds": rounds}


def learn(model: Model, files: Files, work: Path, effort: Effort) -> dict[str, Any]:
    """The same student, in as many steps, on the DFT labels that the teacher had."""
    folder, steps = work / "distillation" / model.name, effort.rounds * effort.student_steps
    settings = workflow.training_settings(steps, model.seed, folder / "run")
    config = TrainConfig(
        train=files.train,
        model=validate(_model(model), model.name, PotentialConfig),
        ema_decay=0.99,
        max_programs=2,
        **settings | {"batch_size": BATCH, "validate_every": steps},
    )
    workflow.train(config)
    shutil.copyfile(folder / "run" / "model.lamjax", folder / "model.lamjax")
    return {"steps": steps, "labels": len(data.read(files.train))}


def errors(model: Model, loaded, files: Files, work: Path) -> dict[str, dict[str, float]]:
    """RMSE on held-out DFT frames, against DFT and against the teacher."""
    frames = data.read(files.test)
    predicted = _predicted(loaded, frames)
    dft = [(float(f.labels.energy), np.asarray(f.labels.forces)) for f in frames]
    against = {"dft": dft}
    if model.way != TEACHER:
        model_of = checkpoints.load(_path(Model(model.case, TEACHER), work), dtype=np.float32)
        against["teacher"] = _predicted(model_of, frames)
    return {name: _rmse(predicted, other) for name, other in against.items()}


def moved(model: Model, loaded, files: Files, effort: Effort) -> dict[str, Any]:
    """Radial distribution functions of a simulation at constant volume, after its first third."""
    case, (potential, params) = CASES[model.case], loaded
    atoms = cases.md_start(model.case, files.test[0])
    n_steps = effort.md_steps or case.md_steps
    ensemble = dynamics.nvt(potential, dynamics.NVTConfig(case.timestep, case.temperature))
    simulation = dynamics.begin(ensemble, params, from_ase(atoms, np.float32), seed=model.seed)
    every = max(1, n_steps // 200)
    parts = [record for _, record in dynamics.simulate(ensemble, params, simulation, n_steps, every)]
    positions, temperature = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("positions", "temperature")
    )
    first = len(positions) // 3
    results = {"temperature": float(np.mean(temperature[first:]))}
    return results | {"rdf": _rdf(atoms, positions[first:], case.largest)}


def timed(models: Sequence[Model], files: Files, work: Path) -> dict[str, Any]:
    """Milliseconds of a step (best of rounds that the models take in turns), and memory of energy and forces.

    In one process, with radial nets as tables, on eight times the cell of the simulation.
    """
    case = CASES[models[0].case]
    atoms = cases.md_start(models[0].case, files.test[0]) * (2, 2, 2)
    system, runs, measurements = from_ase(atoms, np.float32), {}, {}
    for model in models:
        potential, params = edit.tabulate(*checkpoints.load(_path(model, work), dtype=np.float32))
        ensemble = dynamics.nve(potential, dynamics.NVEConfig(case.timestep))
        simulation = dynamics.begin(ensemble, params, system, temperature=case.temperature)
        runs[model] = functools.partial(_walk, ensemble, params, simulation)
        runs[model]()  # compiles
        measurements[model] = {"kb_per_atom": _kilobytes(potential, params, system)}
    for _ in range(5):
        for model, run in runs.items():
            began = time.perf_counter()
            run()
            seconds = (time.perf_counter() - began) / STEPS
            measurements[model]["ms_per_step"] = min(1000 * seconds, measurements[model].get("ms_per_step", np.inf))
    return {"atoms": len(atoms), **{_kind(model): facts for model, facts in measurements.items()}}


def _walk(ensemble, params, simulation) -> None:
    for _ in dynamics.simulate(ensemble, params, simulation, STEPS, STEPS):
        pass


def _kind(model: Model) -> str:
    return f"{model.student} {model.way}".strip()


def _wait(result: Path) -> None:
    """Until another process has finished it."""
    if not result.is_file():
        console.print(f"waiting for {result}", soft_wrap=True)
    while not result.is_file():
        time.sleep(5)


def _rdf(atoms: ase.Atoms, positions: np.ndarray, largest: float) -> dict[str, list[float]]:
    """g(r) of every pair of elements, mean over the frames."""
    numbers, bins = sorted(set(atoms.numbers.tolist())), 120
    functions: dict[str, list[float]] = {}
    for k, a in enumerate(numbers):
        for b in numbers[k:]:
            curves = []
            for frame in positions:
                structure = ase.Atoms(atoms.numbers, frame, cell=atoms.cell, pbc=True)
                g, r = get_rdf(structure, largest, bins, elements=(a, b))
                curves.append(g)
            pair = f"{ase.data.chemical_symbols[a]}-{ase.data.chemical_symbols[b]}"
            functions[pair] = np.round(np.mean(curves, axis=0), 4).tolist()
    return {"r": np.round(r, 4).tolist(), **functions}


def _kilobytes(potential, params, system) -> float:
    """What the program of energy and forces needs beside its arguments, per atom."""
    run = jax.jit(functools.partial(predict, potential), compiler_options=compiler_options())
    compiled = run.lower(params, system, allocate(potential, system)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1000 / system.n_atoms


def _predicted(loaded, frames) -> list[tuple[float, np.ndarray]]:
    plan = data.plan(frames, loaded[0].shells, 2, batch_size=workflow.BATCH)
    predicted = predictions(*loaded, data.pack(frames, plan, np.float32), workflow.BATCH)
    return [(float(one.energy), np.asarray(one.forces)) for one in predicted]


def _rmse(predicted, other) -> dict[str, float]:
    """Energies meV/atom, forces meV/Å."""
    e = [(a - c) / len(b) for (a, b), (c, _) in zip(predicted, other, strict=True)]
    f = np.concatenate([np.ravel(b - d) for (_, b), (_, d) in zip(predicted, other, strict=True)])
    return {"e": float(1000 * np.sqrt(np.mean(np.square(e)))), "f": float(1000 * np.sqrt(np.mean(f**2)))}


def _path(model: Model, work: Path) -> Path:
    return work / "distillation" / model.name / "model.lamjax"


def _model(model: Model) -> dict[str, Any]:
    return {"elements": list(CASES[model.case].elements), **STUDENTS[model.student]}


def _starts(case: Case, files: Files, folder: Path, effort: Effort) -> str:
    """A file with some of the training frames, without their labels."""
    frames = data.read(files.train)[:: case.every][: effort.starts]
    path = folder / "starts.extxyz"
    ase.io.write(path, [to_ase(frame.system) for frame in frames])
    return str(path)


def _progress(facts: dict[str, Any]) -> str:
    text = f"round {facts['round']}: {facts['explored']} explored, {facts['within']} within, {facts['above']} above"
    if facts["force"] is not None:
        text += f", F {1000 * facts['force']:.0f} meV/Å, E {1000 * facts['energy']:.2f} meV/atom"
    return text + f", {sum(facts['seconds'].values()):.0f} s {facts['seconds']}"


if __name__ == "__main__":
    parser = workflow.arguments(__doc__, HERE)
    parser.add_argument("--water-train", nargs="+", default=[], help="labelled frames of water: files, DeePMD folders")
    parser.add_argument("--water-test", nargs="+", default=[], help="held-out ones")
    given = parser.parse_args()
    workflow.begin(given.work, given.cache)
    alloy = Files(*((str(DATA / "mota_pbe" / f"{name}.extxyz.gz"),) for name in ("train", "test")))
    sets = {"alloy": alloy}
    if given.water_train and given.water_test:
        sets["water"] = Files(tuple(given.water_train), tuple(given.water_test))
    effort = cases.QUICK if given.quick else cases.FULL
    main(sets, given.seeds[:1] if given.quick else given.seeds, given.work, effort, given.quick, given.report)
