"""What do MACE, NequIP, DPA-2 and DPA-3 of like cost learn of the same data, in the same steps and in the same time?

    python -m experiments.baselines.run

from the root of the repository, with the extra `lamjax[mlip]`. The same command in several shells shares the runs out
among them; a run that is killed goes on where it was. results.json, the tables in the README and the plot hold the sets
and seeds of which all is done.
"""

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import workflow
from experiments.baselines import models, report
from experiments.baselines.models import MACE, NAMES
from lamjax import Potential, checkpoints, data
from lamjax.evaluation.errors import predictions
from lamjax.files import locked
from lamjax.neighbors import Shell
from lamjax.reports import console
from lamjax.training import ScheduleConfig
from lamjax.training import labels as label_runs
from lamjax.training.config import TrainConfig

HERE = Path(__file__).parent
STEPS = 1500  # of every run
SECONDS = 60.0  # processor time of the training steps of every run
BATCH = "auto:48"  # atoms
PROBE = 40  # frames of a downstream set to which an energy per element is fitted
TIMED = 15  # steps
BUDGETS = ("steps", "time")  # what the models of a table have in common


class BaselineSet(NamedTuple):
    """What is trained on, held out, and measured without training."""

    train: str
    test: str  # held out: other dimers, other polymorphs
    downstream: str  # name of another set
    downstream_train: str  # of which some frames say what the zeros of energy are
    downstream_tests: dict[str, str]


SETS = {
    "dimers": BaselineSet(
        "dimers_gfn2xtb/train",
        "dimers_gfn2xtb/validation",
        "acac",
        "acac_pbed3/train",
        {"300 K": "acac_pbed3/test_300K", "600 K": "acac_pbed3/test_600K"},
    ),
    "oxides": BaselineSet(
        "oxides_bo2/pbe_train",
        "oxides_bo2/pbe_validation",
        "tio2",
        "tio2_pbe_qe/train",
        {"test": "tio2_pbe_qe/test"},
    ),
}


class Run(NamedTuple):
    """A model that is trained, or timed (seed None)."""

    key: str  # of SETS
    model: str
    budget: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(str(x) for x in self if x not in ("", None))

    @property
    def folder(self) -> str:
        """Of the training, which both budgets share."""
        return f"{self.key}-{self.model}-{self.seed}"


class Work(NamedTuple):
    """Where and how large the runs are."""

    folder: Path  # of the work
    quick: bool
    steps: int

    @property
    def size(self) -> workflow.Size:
        return workflow.QUICK if self.quick else workflow.FULL

    @property
    def results(self) -> Path:
        """A JSON file for each finished run."""
        return self.folder / "baselines"


def main(seeds: Sequence[int], sets: Sequence[str], chosen: Sequence[str], work: Work, only_report: bool) -> None:
    """Time the models, train them, and report the sets and seeds that are done."""
    costs = [Run(key, model) for key in sets for model in chosen]
    runs = [Run(*one) for one in itertools.product(sets, chosen, BUDGETS, seeds)]
    if not work.quick:
        restore(work.results)
    for run in () if only_report else costs:
        workflow.once(work.results / f"{run.name}.json", functools.partial(cost, run, work))
    for seed, key, model in () if only_report else itertools.product(seeds, sets, chosen):
        train(key, model, seed, work)
    done = finished(costs, runs, work.results)
    if done["runs"]:
        results = done | {"not trained": {key: without_model(SETS[key], work) for key in sets}}
        report.tell(results, HERE if not work.quick else work.folder / "baselines_report")


def train(key: str, model: str, seed: int, work: Work) -> None:
    """Both runs of a model, the longer going on from the shorter, unless another process is timing or training it."""
    if not (work.results / f"{Run(key, model).name}.json").is_file():
        return
    if (lock := locked(work.results / f"{key}-{model}-{seed}.lock")) is None:
        return
    with lock:
        for run in sorted((Run(key, model, budget, seed) for budget in BUDGETS), key=lambda run: steps_of(run, work)):
            workflow.once(work.results / f"{run.name}.json", functools.partial(measure, run, work))


def restore(folder: Path) -> None:
    """The results that were reported before."""
    earlier, _ = workflow.reported(HERE / "results.json")
    before = [*earlier.get("costs", ()), *earlier.get("runs", ())]
    workflow.restore(before, folder, lambda one: Run(*(one[key] for key in Run._fields)).name)


def finished(costs: Sequence[Run], runs: Sequence[Run], folder: Path) -> dict[str, list[dict]]:
    """The results of the sets and seeds of which no run is missing."""
    missing = {(run.key, run.seed) for run in (*costs, *runs) if not (folder / f"{run.name}.json").is_file()}
    if missing:
        console.print("not done yet: " + ", ".join(f"{key} seed {seed}" for key, seed in sorted(missing, key=str)))
    untimed = {key for key, seed in missing if seed is None}
    kept = [run for run in runs if (run.key, run.seed) not in missing and run.key not in untimed]
    timed = [run for run in costs if run.key in {one.key for one in kept}]
    collect = lambda some: workflow.collect(folder, [run.name for run in some])  # noqa: E731
    return {"costs": collect(timed), "runs": collect(kept)}


def config(run: Run, steps: int, work: Work) -> TrainConfig:
    """The training of a run; the rate is constant, so that it can go on, and the running mean is what is measured."""
    dataset, seed = SETS[run.key], run.seed or 0
    train = workflow.files(work.size, work.folder, [dataset.train])
    folder = work.folder / "baselines_runs" / (run.name if run.seed is None else run.folder)
    optimizer, rate = models.optimizer(run.model)
    settings = workflow.training_settings(work.steps, seed, folder / "run") | {
        "steps": steps,
        "batch_size": BATCH,
        "optimizer": optimizer,
        "schedule": ScheduleConfig("constant", start_lr=rate, stop_lr=rate, warmup_steps=work.steps // 10),
    }
    return TrainConfig(
        train=train,
        validation=(spanning(run.key, work),),
        max_programs=1,
        ema_decay=0.99,
        **models.beginning(run.model, facts(run.key), seed, work.quick, folder),
        **settings,
    )


@functools.cache
def facts(key: str) -> models.Facts:
    """What models take from the training frames of a set, of all of them however small the runs are."""
    return models.facts(data.read(workflow.files(workflow.FULL, Path(), [SETS[key].train])))


@functools.cache
def spanning(key: str, work: Work) -> str:
    """The frames that need the largest arrays, as validation: one shape, and so one program, for all runs of a set."""
    dataset = SETS[key]
    names = workflow.files(work.size, work.folder, [dataset.train, dataset.test])
    shells = (Shell(models.CUTOFF),)
    return workflow.largest(names, work.folder / "data" / f"baselines_{key}_shape.extxyz.gz", shells)


def cost(run: Run, work: Work) -> dict[str, Any]:
    """Processor time of a training step, of compiling it, and of energies and forces: the least of several."""
    began = time.process_time()
    training = label_runs.prepare(config(run, work.steps, work), resume=True)
    first, *batches = [batch for _, batch in itertools.islice(training.objective.batches(0), 1 + TIMED)]
    compiled, state = timed(lambda: training.step(training.state, first)[0])
    steps = []
    for batch in batches:
        seconds, state = timed(functools.partial(lambda state, batch: training.step(state, batch)[0], state, batch))
        steps.append(seconds)
    labelled = evaluated(training.potential, run.key, work)["held out"]
    predict = functools.partial(predictions, training.potential, jax.device_get(state.params), labelled.packed, BATCH)
    inference = min(timed(predict)[0] for _ in range(3))
    n_atoms = sum(frame.system.n_atoms for frame in labelled.frames)
    return {
        **run._asdict(),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "step": float(np.min(steps)),
        "compilation": round(compiled - float(np.min(steps)), 1),
        "inference": inference / n_atoms,
        "seconds": round(time.process_time() - began, 1),
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time (s) of a call and its value."""
    began = time.process_time()
    value = jax.block_until_ready(call())
    return time.process_time() - began, value


def steps_of(run: Run, work: Work) -> int:
    """The steps of a run: those of all, or as many as the model takes in the time of all."""
    if run.budget == "steps" or work.quick:
        return work.steps + (run.budget == "time")
    (costs,) = workflow.collect(work.results, [Run(run.key, run.model).name])
    return max(1, round(SECONDS / costs["step"]))


def measure(run: Run, work: Work) -> dict[str, Any]:
    """Train, or train on, to the steps of the budget, and measure what was held out and the downstream set."""
    steps, began = steps_of(run, work), time.process_time()
    training, _ = workflow.train(config(run, steps, work))
    seconds = time.process_time() - began
    model = Path(training.settings.output) / "model.lamjax"
    potential, params = checkpoints.load(model, dtype=np.float32, trust=models.TRUSTED)
    labelled = evaluated(potential, run.key, work)
    shift = workflow.energy_shift(potential, params, labelled["probe"])
    downstream = {
        name: workflow.errors(potential, params, labelled[f"zero-shot, {name}"], shift)
        for name in SETS[run.key].downstream_tests
    }
    return {
        **run._asdict(),
        "steps": steps,
        "seconds": round(seconds, 1),
        "test": workflow.errors(potential, params, labelled["held out"]),
        "zero_shot": downstream,
    }


@functools.cache
def evaluated(potential: Potential, key: str, work: Work) -> dict[str, workflow.Measured]:
    """The frames that are measured, in shapes that they share; read once for all seeds of a model."""
    dataset, files = SETS[key], functools.partial(workflow.files, work.size, work.folder)
    sets = {"held out": files([dataset.test]), "probe": (probe(dataset, work),)}
    sets |= {f"zero-shot, {name}": files([file]) for name, file in dataset.downstream_tests.items()}
    return workflow.measured(potential, sets)


def probe(dataset: BaselineSet, work: Work) -> str:
    """Some training frames of the downstream set, evenly spread."""
    (file,) = workflow.files(work.size, work.folder, [dataset.downstream_train])
    rows = np.unique(np.linspace(0, len(workflow.frames(file)) - 1, PROBE).astype(int)).tolist()
    return workflow.subset(file, rows, work.folder / "data" / f"baselines_{dataset.downstream}_probe.extxyz.gz")


def without_model(dataset: BaselineSet, work: Work) -> dict[str, Any]:
    """RMSE of zero forces and an energy per element, fitted to the training frames or those of the downstream set."""
    files = functools.partial(workflow.files, work.size, work.folder)
    read = lambda paths: workflow.labels(data.read(paths))  # noqa: E731

    def errors(fitted: tuple, tested: tuple) -> dict[str, float]:
        per_element = np.linalg.lstsq(fitted[0], fitted[1], rcond=None)[0]
        counts, energies, forces = tested
        left = (energies - counts @ per_element) / counts.sum(axis=1)
        return {f"rmse_{k}": float(1000 * np.sqrt(np.mean(x**2))) for k, x in (("e", left), ("f", forces))}

    downstream = read((probe(dataset, work),))
    return {
        "test": errors(read(files([dataset.train])), read(files([dataset.test]))),
        "zero_shot": {name: errors(downstream, read(files([file]))) for name, file in dataset.downstream_tests.items()},
    }


def check_models(chosen: Sequence[str]) -> None:
    """SystemExit where the package of MACE is not installed."""
    if MACE in chosen and importlib.util.find_spec("mlip") is None:
        others = " ".join(name for name in NAMES if name != MACE)
        raise SystemExit(
            'MACE is that of the package mlip, which is not installed: pip install "lamjax[mlip]", or leave it out: '
            f"--models {others}."
        )


if __name__ == "__main__":
    parser = workflow.arguments(__doc__, HERE)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    parser.add_argument("--steps", type=int, help=f"that all models take (default: {STEPS})")
    given = parser.parse_args()
    check_models(given.models)
    workflow.begin(given.work, given.cache)
    seeds, sets = (given.seeds[:1], ["oxides"]) if given.quick else (given.seeds, given.sets)
    main(
        seeds,
        sets,
        given.models,
        Work(given.work, given.quick, given.steps or (3 if given.quick else STEPS)),
        given.report,
    )
