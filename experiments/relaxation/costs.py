"""What a gradient step of each method, and a relaxation, cost from a base: processor time on silicon with defects.

    python -m experiments.relaxation.costs --base nequix:PATH

Of a method two steps are taken, the first with its compilation. costs.json lies beside the results of the base.
"""

import functools
import json
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from experiments import workflow
from experiments.relaxation import methods
from experiments.relaxation.bases import Base, read_base
from experiments.relaxation.methods import FORCES
from experiments.relaxation.sets import RelaxationSet, split, with_bases
from lamjax import checkpoints, data
from lamjax.evaluation.structures import judge
from lamjax.relaxation import RelaxConfig
from lamjax.training import engine, structures
from lamjax.training import labels as label_runs

HERE = Path(__file__).parent
KEY = "si_defects"


def measured(prepare: Callable[[], engine.Run]) -> dict[str, float]:
    """Processor seconds of what precedes a run, of a step, of its compilation, and the steps of a whole run."""
    began = time.process_time()
    run = prepare()
    preparation, seconds = time.process_time() - began, []
    batches, state = run.objective.batches(0), run.state
    for _ in range(2):
        batch = next(batches)[1]
        began = time.process_time()
        state, _ = jax.block_until_ready(run.step(state, batch))
        seconds.append(time.process_time() - began)
    compilation = seconds[0] - seconds[1]
    return {"preparation": preparation, "compilation": compilation, "step": seconds[1], "steps": run.settings.steps}


def method_cost(method: str, dataset: RelaxationSet, base: Base, folder: Path) -> dict[str, float]:
    """The cost of a way to train."""
    files, output = split(dataset, 0, 0, folder), str(folder / f"run {method}")
    if method == FORCES:
        config = methods.forces(method, dataset, files, base.effort.force_steps, output, 0)
        return measured(lambda: label_runs.prepare(config, resume=True))
    return measured(
        lambda: structures.prepare(methods.structures(method, dataset, files, {"output": output}), resume=True)
    )


def relaxation_cost(dataset: RelaxationSet, base: Base, folder: Path) -> dict[str, float]:
    """The cost of relaxing what is held out of the first seed."""
    pairs = data.read_pairs(split(dataset, 0, 0, folder).test)
    potential, params = checkpoints.load(dataset.base, dtype="float32")
    began = time.process_time()
    judgement = judge(potential, params, pairs, RelaxConfig(**base.effort.judge))
    seconds = time.process_time() - began
    return {"judging": seconds, "structures": len(pairs), "evaluations": int(judgement.n_steps.sum())}


def table(costs: dict[str, dict]) -> str:
    """A table of the methods."""
    rows = []
    for name, one in costs.items():
        if "step" in one:
            before = one["preparation"] + one["compilation"]
            minutes = (before + one["steps"] * one["step"]) / 60
            numbers = [f"{one['step']:.1f}", f"{before:.0f}", one["steps"], f"{minutes:.1f}"]
        else:
            numbers = ["", "", "", f"{one['judging'] / 60:.1f}"]
        rows.append([name, *numbers])
    columns = ["what", "a gradient step (s)", "before the first one (s)", "steps of a run", "minutes of a run"]
    return workflow.markdown(columns, rows)


def main(base: Base, work: Path) -> None:
    """Measure what was not yet, and print the table."""
    work = work / f"{base.name}-{base.digest[:8]}"
    (dataset,) = with_bases({KEY: base.sets[KEY]}, work, base.model).values()
    makes: dict[str, Callable[[], Any]] = {
        "relaxing what is held out": lambda: relaxation_cost(dataset, base, work / "costs")
    }
    ways = sorted(dataset.methods, key=lambda name: name == FORCES)  # it reads all labels before its first step
    makes |= {name: functools.partial(method_cost, name, dataset, base, work / "costs") for name in ways}
    for name, make in makes.items():
        workflow.once(work / "costs" / f"{name}.json", make)
        write(makes, base, work / "costs")


def write(names: Iterable[str], base: Base, folder: Path) -> None:
    """What is measured so far: costs.json, and a table that is printed."""
    files = {name: folder / f"{name}.json" for name in names}
    costs = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    seconds = sum(
        one.get("judging", 0) + one.get("preparation", 0) + one.get("compilation", 0) + 2 * one.get("step", 0)
        for one in costs.values()
    )
    facts = workflow.facts(f"python -m experiments.relaxation.costs --base {base.option}", seconds)
    base.report.mkdir(parents=True, exist_ok=True)
    (base.report / "costs.json").write_text(json.dumps({**facts, "base": base.digest, "costs": costs}, indent=1) + "\n")
    print(table(costs))


if __name__ == "__main__":
    parser = workflow.arguments(__doc__, HERE)
    parser.add_argument("--base", required=True, help="small, or nequix:PATH")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    workflow.begin(given.work, given.cache)
    main(read_base(given.base), given.work)
