"""Which way to learn from relaxations brings relaxations to the right place, and what does it cost elsewhere?

    python -m experiments.relaxation.run

from the root of the repository. The same command in several shells shares the runs out among them, and a run that was
killed begins again. When all of a study are done, results.json, the tables in the README and the plots are written.
"""

import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import workflow
from experiments.relaxation import methods, report
from experiments.relaxation.bases import FEW, STUDIES, Base, read_base
from experiments.relaxation.methods import BASE, FORCES, KEPT, KEPT_FORCES, START, STRESSES, THEN, Effort
from experiments.relaxation.sets import SETS, RelaxationSet, Split, keep, path, split, with_bases
from lamjax import build, checkpoints, data, edit
from lamjax.config import merged
from lamjax.evaluation.structures import Judgement, LabelledSets, compare, judge
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.reports import console
from lamjax.training import engine, follow, structures
from lamjax.training.records import HISTORY, until

HERE = Path(__file__).parent
MODEL = "model.lamjax"  # of a run, after its last step


class Run(NamedTuple):
    """One training, or the base as it is."""

    key: str  # of SETS
    method: str
    setting: str = ""  # of methods.SETTINGS or methods.SHARES
    n: int = 0  # pairs; 0: all there are
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(str(x).replace(" ", "_").replace("/", "by") for x in self if x != "")


SIZES = (5, 10, 20)  # pairs


def studies(
    seeds: Sequence[int], sets: Mapping[str, RelaxationSet] = SETS, few: Mapping[str, str] = FEW
) -> dict[str, list[Run]]:
    """What is compared, study by study."""
    dimers = [Run("dimers", BASE, seed=s) for s in seeds if "dimers" in sets]
    return {
        "methods": [
            Run(key, method, seed=s)
            for s in seeds
            for key, dataset in sets.items()
            for method in (BASE, START, *dataset.methods)
        ],
        "settings": [
            *dimers,
            *(run._replace(method="BPTT", setting=setting) for run in dimers for setting in methods.SETTINGS),
        ],
        "pairs": [
            run
            for s in seeds
            for key, method in few.items()
            if key in sets
            for run in (Run(key, BASE, seed=s), *(Run(key, method, n=n, seed=s) for n in SIZES))
        ],
        "shares": [
            run
            for s in seeds
            for key, dataset in sets.items()
            if dataset.shared
            for run in (
                Run(key, BASE, seed=s),
                *(Run(key, method, setting, seed=s) for method in dataset.shared for setting in ("", *methods.SHARES)),
            )
        ],
    }


def measure(run: Run, work: Path, effort: Effort, dataset: RelaxationSet) -> dict[str, Any]:
    """Train, then relax what was held out and compare; forces on held-out relaxations and elsewhere."""
    began = time.monotonic()
    files = split(dataset, run.seed, run.n, work / "relaxation" / run.name)
    pairs = data.read_pairs(files.test, variable_cell=dataset.variable_cell)
    if run.method == START:
        return run._asdict() | {"seconds": 0.0, "seconds_judged": 0.0} | _figures(starts(pairs), pairs)
    potential, params, facts = _trained(run, work, dataset, files, effort)
    trained = time.monotonic()
    cell = CellConfig() if dataset.variable_cell else None
    judgement = judge(potential, params, pairs, RelaxConfig(**effort.judge, cell=cell))
    frames = {"elsewhere": data.read(path(dataset.elsewhere))} | (
        {"paths": data.read(files.test)[:: dataset.every]} if dataset.labelled else {}
    )
    errors = LabelledSets(frames, dict.fromkeys(frames, potential), "float32").errors(params)
    return {
        **run._asdict(),
        "seconds": round(trained - began, 1),
        "seconds_judged": round(time.monotonic() - trained, 1),
        **{key: value for key, value in errors.items() if key.endswith("rmse_f")},
        **facts,
        **_figures(judgement, pairs),
    }


def _figures(judgement: Judgement, pairs: Sequence[data.Pair]) -> dict[str, list]:
    """Structure by structure."""
    return {
        "structures": [str(pair.info["relax_id"]) for pair in pairs],
        **{key: np.asarray(value).tolist() for key, value in judgement._asdict().items() if key in report.FIGURES},
    }


def starts(pairs: Sequence[data.Pair]) -> Judgement:
    """What would be found if nothing moved."""
    errors, no = compare([pair.start for pair in pairs], pairs), np.zeros(len(pairs), bool)
    return Judgement(*errors, n_steps=no.astype(int), converged=no, failed=no)


def _trained(run: Run, work: Path, dataset: RelaxationSet, files: Split, effort: Effort):
    """The potential, its parameters after the last step, and what the training tells of itself."""
    output = str(work / "relaxation" / run.name / "run")
    if run.method == BASE:
        return *checkpoints.load(path(dataset.base), dtype=np.float32), {}
    if run.method in (FORCES, STRESSES):
        return *checkpoints.load(_taught_forces(run, work, dataset, effort), dtype=np.float32), {}
    if run.setting in methods.SHARES:
        return *_between(run, work, dataset, files, effort), {}
    before = {THEN: FORCES, KEPT: KEPT_FORCES}.get(run.method)
    first = _taught_forces(run._replace(method=before), work, dataset, effort) if before else None
    changes = {**effort.changes, "output": output, "seed": run.seed}
    if run.setting:
        changes = merged(methods.SHORT, methods.SETTINGS[run.setting]) | changes
    elif run.n:  # as many steps, however few the pairs
        changes |= {"epochs": -(-dataset.settings["epochs"] * max(SIZES) // run.n), "max_programs": 1}
    potential, params, facts = _tuned(methods.structures(run.method, dataset, files, changes, first))
    checkpoints.save(work / "relaxation" / run.name / MODEL, potential, params, {"run": run.name})
    return potential, params, facts


def _between(run: Run, work: Path, dataset: RelaxationSet, files: Split, effort: Effort):
    """The model between the base and what was trained from it."""
    whole = run._replace(setting="")
    if not (tuned := work / "relaxation" / whole.name / MODEL).exists():
        _trained(whole, work, dataset, files, effort)
    base, (_, params) = (checkpoints.load(file, dtype=np.float32) for file in (path(dataset.base), tuned))
    return edit.interpolate(*base, params, methods.SHARES[run.setting])


def _taught_forces(run: Run, work: Path, dataset: RelaxationSet, effort: Effort) -> str:
    """The model of a run that learns energies and forces, trained unless it is there."""
    folder = work / "relaxation" / run.name
    files = split(dataset, run.seed, run.n, folder)
    if run.method == KEPT_FORCES and not Path(files.kept).exists():
        keep(path(dataset.base), path(dataset.kept), files.kept)
    workflow.train(methods.forces(run.method, dataset, files, effort.force_steps, str(folder / "run"), run.seed))
    return str(folder / "run" / "model.lamjax")


def _tuned(config: structures.StructureTuneConfig):
    """The last model of a run on structures; nothing that is held out has a say in it."""
    run = structures.prepare(config, resume=True)
    steps = run.settings.steps
    goal = run.objective._replace(measure=lambda params, first, watch: {})
    settings = replace(run.settings, validate_first=False, validate_every=steps)
    written = engine.Outputs(run.outputs.tables, config=config)

    def tell(event: engine.Event) -> None:
        if isinstance(event, engine.Epoch):
            loss = event.rows[-1]["loss"]
            console.print(f"{config.output}: step {event.step}/{steps}, loss {loss:.3f}", soft_wrap=True)

    params = follow(run._replace(objective=goal, settings=settings, outputs=written), tell)
    rows = until(Path(config.output) / HISTORY, steps)
    counts = {key: int(sum(row[key] for row in rows)) for key in structures.COUNTS if key in rows[0]}
    learned = getattr(params, "minimiser", {})
    numbers = {key: float(x) if x.ndim == 0 else float(abs(x).max()) for key, x in jax.device_get(learned).items()}
    facts = {"steps": len(rows), "counts": counts, "minimiser": numbers, "loss": [row["loss"] for row in rows]}
    return run.potential, structures.model(params), facts


def main(seeds: Sequence[int], chosen: Sequence[str], only: Sequence[str], work: Path, base: Base) -> None:
    """Do the runs on the sets `only`, and report what is done: of each set the seeds of which no run is missing."""
    work = work if base.quick else work / f"{base.name}-{base.digest[:8]}"
    sets = smaller(base, work) if base.quick else with_bases(base.sets, work, base.model)
    planned = studies(seeds, sets, base.few)
    if not base.quick:
        restore(base.report / "results.json", work / "relaxation", base.digest)
    for run in dict.fromkeys(run for study in chosen for run in planned[study] if run.key in only):
        make = functools.partial(measure, run, work, base.effort, sets[run.key])
        workflow.once(work / "relaxation" / f"{run.name}.json", make)
    made = {study: finished(planned[study], work / "relaxation") for study in chosen}
    if any(made.values()):
        out = work / "report" if base.quick else base.report
        report.tell({study: results for study, results in made.items() if results}, out, base.option, base.digest)


def restore(path: Path, folder: Path, base: str | None = None) -> None:
    """Write the results of runs that were reported before, if they began from that base, by default the shipped one."""
    earlier, same = workflow.reported(path, base)
    runs = [one for study in report.STUDIES for one in earlier.get(study, ()) if same]
    workflow.restore(runs, folder, lambda one: Run(**{key: one[key] for key in Run._fields}).name)


def finished(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """The results of a study, of those sets and seeds of which all runs are done; what is missing is printed."""
    missing = {(run.key, run.seed) for run in runs if not (folder / f"{run.name}.json").is_file()}
    if missing:
        console.print("not done yet: " + ", ".join(f"{key} seed {seed}" for key, seed in sorted(missing)))
    return workflow.collect(folder, [run.name for run in runs if (run.key, run.seed) not in missing])


def smaller(base: Base, work: Path) -> dict[str, RelaxationSet]:
    """One set, a model of a few parameters, and a few methods."""
    file = work / "relaxation" / "base_random.lamjax"
    potential = build(workflow.model(workflow.QUICK, ["random"]))
    checkpoints.save(file, potential, potential.init(jax.random.key(0)), {"what": "random numbers"})
    dataset = SETS["ypo4"]._replace(base=file, earlier=Path("mgypo4_pbe/test"), elsewhere=Path("mgypo4_pbe/test"))
    return {"ypo4": dataset._replace(methods=(FORCES, "Newton", "BPTT"), shared=("BPTT",))}


if __name__ == "__main__":
    parser = workflow.arguments(__doc__, HERE, seeds=range(5))
    parser.add_argument("--studies", nargs="+", choices=STUDIES, help="default: all; of nequix methods and pairs")
    parser.add_argument("--sets", nargs="*", help="whose runs are done now; default: all")
    parser.add_argument("--base", default="small", help="small, or nequix:PATH with the file nequix-mp-1.nqx")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    workflow.begin(given.work, given.cache)
    base = read_base(given.base, given.quick)
    wanted = given.studies or base.studies
    seeds, chosen = (given.seeds[:1], ["methods", "shares"]) if given.quick else (given.seeds, wanted)
    only = list(base.sets) if given.sets is None else given.sets
    main(seeds, chosen, () if given.report else only, given.work, base)
