"""Does a descriptor trained on all sets describe sets it never saw better than one trained on a single set?

    python -m experiments.multitask_vs_single.run

from the root of the repository; the same command in several shells shares the runs out among them. A run that is
killed goes on where it was. When all are done, results.json, the tables in the README and the plot are written, and
base.lamjax (the multi-task model of the first seed, with a model card) in the work folder.
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import workflow
from experiments.look import PRETRAINED
from experiments.workflow import DOWNSTREAM, PRETRAINING, Size
from lamjax import checkpoints, data
from lamjax.reports import style
from lamjax.training.config import TrainConfig

HERE = Path(__file__).parent
MULTI = "multi"
SINGLE = ("materials", "pbe", "gfn2xtb")  # the largest
STEPS = 8000
PROBE = 20  # frames of the downstream training data on which head and model are chosen
PAPER = {"e": (100.2, 50.1), "f": (628.0, 238.8)}  # weighted RMSE, single-task and multi-task, meV/atom and meV/Å


def main(seeds: list[int], steps: int, work: Path, size: Size, report: bool) -> None:
    singles, sets = (SINGLE, tuple(DOWNSTREAM)) if size is workflow.FULL else (("gfn2xtb",), ("acac",))
    names = [f"{run}-{seed}" for seed in seeds for run in (MULTI, *singles)]
    for name in () if report else names:
        run, _, seed = name.rpartition("-")
        file = work / "zero_shot" / f"{name}.json"
        workflow.once(file, lambda r=run, s=int(seed): measure(r, s, steps, sets, work, size))
    results = workflow.collect(work / "zero_shot", names)
    if results:
        nothing = {key: without_model(key, work, size) for key in sets}
        tell(results, nothing, seeds, singles, steps, HERE if size is workflow.FULL else work / "multitask_vs_single")


def pretrain(name: str, seed: int, steps: int, work: Path, size: Size):
    """One run of pre-training, on all sets (`multi`) or a single one: the run, its model, and the seconds it took."""
    heads = size.tasks if name == MULTI else (name,)
    output = work / "pretraining" / f"{name}-{seed}"
    config = TrainConfig(
        tasks=workflow.tasks(size, work, heads),
        model=workflow.model(size, heads),
        max_programs=size.max_programs,
        ema_decay=0.999,
        **workflow.training_settings(steps, seed, output),
    )
    run, seconds = workflow.train(config)
    return run, checkpoints.load(output / "model.lamjax", dtype=np.float32), seconds


def measure(name: str, seed: int, steps: int, sets: tuple[str, ...], work: Path, size: Size) -> dict[str, Any]:
    """Pre-train, then measure held-out frames of every task and the downstream sets."""
    run, (potential, params), seconds = pretrain(name, seed, steps, work, size)
    results = {
        "run": name,
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 1),
        "validation": {},
        "zero_shot": {},
    }
    for head in potential.config.head_names:
        one = workflow.one_head(potential, params, head)
        paths = workflow.files(size, work, PRETRAINING[head].validation)
        held_out = workflow.measured(potential, {head: paths}, max_programs=3)[head]
        results["validation"][head] = workflow.errors(*one, held_out)
    elements = {z for task in run.data.tasks for frame in task.frames for z in frame.system.numbers.tolist()}
    for key in sets:
        results["zero_shot"][key] = zero_shot(potential, params, key, elements, work, size)
    if name == MULTI and seed == 0:
        checkpoints.save(work / "base.lamjax", potential, params, card(results, steps))
    return results


def zero_shot(potential, params, key: str, elements: set[int], work: Path, size: Size) -> dict[str, Any] | None:
    """Errors on the tests of a downstream set without training; None if it has an element that was not seen.

    The head is the one with the least force errors on some training frames; energies are compared after an energy per
    element that is fitted to the training frames.
    """
    chosen = DOWNSTREAM[key]
    paths = {name: workflow.files(size, work, [file]) for name, file in {"train": chosen.train, **chosen.tests}.items()}
    labelled = workflow.measured(potential, paths)
    if not {z for frame in labelled["train"].frames for z in frame.system.numbers.tolist()} <= elements:
        return None
    n = len(labelled["train"].frames)
    probe = workflow.selection(labelled["train"], np.unique(np.linspace(0, n - 1, PROBE).astype(int)))
    head, heads = workflow.best_head(potential, params, potential.config.head_names, probe)
    one = workflow.one_head(potential, params, head)
    shift = workflow.energy_shift(*one, labelled["train"])
    return {
        "head": head,
        "probe": heads,
        "tests": {test: workflow.errors(*one, labelled[test], shift) for test in chosen.tests},
    }


def without_model(key: str, work: Path, size: Size) -> dict[str, dict[str, float]]:
    """RMSE on the tests of a downstream set of zero forces and of an energy per element, fitted to training frames."""
    chosen, errors = DOWNSTREAM[key], {}
    paths = {name: workflow.files(size, work, [file]) for name, file in {"train": chosen.train, **chosen.tests}.items()}
    sets = {name: workflow.labels(data.read(path)) for name, path in paths.items()}
    counts, energies, _ = sets.pop("train")
    shift = np.linalg.lstsq(counts, energies, rcond=None)[0]
    for test, (counts, energies, forces) in sets.items():
        left = (energies - counts @ shift) / counts.sum(axis=1)
        errors[test] = {f"rmse_{k}": float(1000 * np.sqrt(np.mean(x**2))) for k, x in (("e", left), ("f", forces))}
    return errors


def card(results: dict[str, Any], steps: int) -> dict[str, Any]:
    """What is to be known of the multi-task model."""
    return {
        "what": "A small DPA-2 for demonstrations and fine-tuning, with a head for each level of theory.",
        "heads": {name: one.level for name, one in PRETRAINING.items()},
        "data": "experiments/data: materials_pbeu, pbe_main_group, metals_pbe, oxides_bo2, dimers_wb97x, "
        "dimers_gfn2xtb (about 4,800 frames), with sources in their PROVENANCE.json",
        "data licences": "MIT (MatterSim repository: MPtrj, Alexandria, MatterSim; OCP: oxides; COMP6: S66x8), "
        "BSD-3-Clause (mlearn, SNAP), own data (GFN2-xTB)",
        "training": f"{steps} steps of one task each, about 96 atoms a step, Muon, running mean of the parameters",
        "made by": f"python -m experiments.multitask_vs_single.run --seeds 0 --steps {steps}",
        "errors on held-out frames (meV/atom, meV/Å)": results["validation"],
        "zero-shot errors on other data (energies after a fitted energy per element)": results["zero_shot"],
        "not good for": "production: it saw few thousand frames for minutes. Charged cells, magnetism, reactions, "
        "surfaces, formation energies, and elements that are rare in the data (see PROVENANCE.json).",
    }


def tell(results: list[dict], nothing: dict, seeds: list[int], singles: tuple[str, ...], steps: int, out: Path) -> None:
    """Tables, plot and results.json."""
    by_run = {(one["run"], one["seed"]): one for one in results}
    ratios = compare(by_run, seeds, singles)
    command = f"python -m experiments.multitask_vs_single.run --steps {steps} --seeds {' '.join(map(str, seeds))}"
    facts = workflow.facts(command, sum(one["seconds"] for one in results))
    tables = [
        zero_shot_table(by_run, nothing, seeds, singles, ratios),
        summary(ratios),
        in_domain_table(by_run, seeds, singles),
    ]
    content = {"multi/best single": ratios, "no model": nothing, "runs": results}
    workflow.write_report(out, {**facts, **content}, "\n\n".join(tables))
    plot(out / "zero_shot.png", by_run, seeds, singles)


def best_single(by_run: dict, seed: int, singles: tuple[str, ...], key: str) -> str:
    """The single-task run with the least force errors on the probe: what a user would take."""
    usable = {run: one for run in singles if (one := by_run[run, seed]["zero_shot"][key]) is not None}
    return min(usable, key=lambda run: min(usable[run]["probe"].values()))


def compare(by_run: dict, seeds: list[int], singles: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """{"tio2, test": {"e": RMSE of multi-task / best single-task for every seed, "f": ...}}."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for key, one in by_run[MULTI, seeds[0]]["zero_shot"].items():
        for test in one["tests"]:
            for seed in seeds:
                multi = by_run[MULTI, seed]["zero_shot"][key]["tests"][test]
                single = by_run[best_single(by_run, seed, singles, key), seed]["zero_shot"][key]["tests"][test]
                row = ratios.setdefault(f"{key}, {test}", {"e": [], "f": []})
                for kind in row:
                    row[kind].append(multi[f"rmse_{kind}"] / single[f"rmse_{kind}"])
    return ratios


def zero_shot_table(by_run: dict, nothing: dict, seeds: list[int], singles: tuple[str, ...], ratios: dict) -> str:
    """RMSE of every model on every downstream test, and of none."""
    columns = ["downstream set", "RMSE of", "no model", MULTI, "head", *singles, "multi / best single"]
    rows = []
    for name, ratio in ratios.items():
        key, test = name.split(", ", 1)
        heads = sorted({by_run[MULTI, seed]["zero_shot"][key]["head"] for seed in seeds})
        for kind, unit in (("e", "energy (meV/atom)"), ("f", "forces (meV/Å)")):
            values = [_values(by_run, seeds, run, key, test, f"rmse_{kind}") for run in (MULTI, *singles)]
            digits = 1 if kind == "e" else 0
            cells = [workflow.mean_range(x, digits) if x else "-" for x in values]
            none = f"{nothing[key][test][f'rmse_{kind}']:.{digits}f}"
            rows.append([name, unit, none, cells[0], " ".join(heads), *cells[1:], workflow.mean_range(ratio[kind], 2)])
    return workflow.markdown(columns, rows)


def _values(by_run: dict, seeds: list[int], run: str, key: str, test: str, error: str) -> list[float]:
    """One error for every seed, nothing where the run does not know the elements."""
    sets = [by_run[run, seed]["zero_shot"][key] for seed in seeds]
    return [one["tests"][test][error] for one in sets if one is not None]


def summary(ratios: dict) -> str:
    """The ratio over all sets beside the paper's."""
    rows = []
    for kind, name in (("e", "energy"), ("f", "forces")):
        means = np.exp(np.mean(np.log([ratio[kind] for ratio in ratios.values()]), axis=0))  # of every seed
        single, multi = PAPER[kind]
        rows.append([name, workflow.mean_range(means, 2), f"{multi / single:.2f} ({single} -> {multi})"])
    columns = ["RMSE, multi-task / best single-task", "here, geometric mean over the sets", "DPA-2 paper"]
    return workflow.markdown(columns, rows)


def in_domain_table(by_run: dict, seeds: list[int], singles: tuple[str, ...]) -> str:
    """RMSE on held-out frames of every task, of the multi-task runs and of the single-task run of the task."""
    rows = []
    for head in by_run[MULTI, seeds[0]]["validation"]:
        runs = (MULTI, head) if head in singles else (MULTI,)
        cells = {
            (run, kind): workflow.mean_range(
                [by_run[run, s]["validation"][head][f"rmse_{kind}"] for s in seeds], digits
            )
            for run in runs
            for kind, digits in (("e", 1), ("f", 0))
        }
        rows.append([head, *(cells.get((run, kind), "-") for kind in "ef" for run in (MULTI, head))])
    energy, forces = "energy (meV/atom)", "forces (meV/Å)"
    columns = ["held-out frames of", f"{energy}, multi", f"{energy}, single", f"{forces}, multi", f"{forces}, single"]
    return workflow.markdown(columns, rows)


def plot(path: Path, by_run: dict, seeds: list[int], singles: tuple[str, ...]) -> None:
    """Zero-shot RMSE of every run, a dot a seed."""
    tests = [(key, test) for key, one in by_run[MULTI, seeds[0]]["zero_shot"].items() for test in one["tests"]]
    title = "Zero-shot on data that no run was trained on"
    colors = {run: ("all sets" if run == MULTI else f"only {run}", PRETRAINED[run]) for run in (MULTI, *singles)}
    caption = f"A dot a seed ({len(seeds)}). From left to right: {', '.join(name for name, _ in colors.values())}."
    with style.figure(path, (7.5, 3.4), (2, 1), title, caption) as panels:
        for axes, kind, unit in zip(panels, "ef", ("energy RMSE (meV/atom)", "force RMSE (meV/Å)"), strict=True):
            points = {}
            for k, (run, (name, color)) in enumerate(colors.items()):
                for x, (key, test) in enumerate(tests):
                    values = _values(by_run, seeds, run, key, test, f"rmse_{kind}")
                    places = np.full(len(values), x + 0.15 * (k - len(singles) / 2))
                    axes.scatter(places, values, s=36, color=color, zorder=3 - k / 10)
                    if len(values):
                        points[name] = ((float(places[0]), float(np.mean(values))), color)
            axes.set(yscale="log", ylabel=unit, xlim=(-0.6, len(tests) + 0.1))
            axes.set_xticks(range(len(tests)), [f"{key}\n{test}" for key, test in tests])
            style.name_points(axes, points)


if __name__ == "__main__":
    given = workflow.command_line(__doc__, HERE, STEPS)
    main(given.seeds, given.steps or STEPS, given.work, given.size, given.report)
