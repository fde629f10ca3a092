"""How much less data does a fine-tuned model need than one that is trained from scratch?

    python -m experiments.sample_efficiency.run

from the root of the repository. Fine-tuned are the model that is shipped (`small`) and the multi-task models of
experiments.multitask_vs_single of the same --work (a missing one is trained first). What is in results.json is not made
again. The same command in several shells shares the runs out among them. When all are done, results.json, the tables in
the README and the plot are written.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, ScalarFormatter

from experiments import workflow
from experiments.look import STARTS
from experiments.multitask_vs_single import run as pretraining
from experiments.workflow import DOWNSTREAM, HEAD, Size
from lamjax import checkpoints, edit
from lamjax.reports import style
from lamjax.training.config import TrainConfig

HERE = Path(__file__).parent
SETS = ("tio2", "acac", "mgypo4")
SIZES = (10, 30, 100, 300)  # training frames
SMALL, MULTI = "small", "finetuned"  # what is fine-tuned: the shipped model, the multi-task model of a seed
STEPS = {SMALL: 1000, MULTI: 1000, "scratch": 2000}
BATCH = "auto:48"  # atoms; the sets are small
LABELS = {SMALL: "small, fine-tuned", MULTI: "multi-task, fine-tuned", "scratch": "from scratch"}


class Point(NamedTuple):
    """One run: a set, a start, so many frames, a seed."""

    key: str
    start: str  # of STEPS
    n: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        base = f"-{workflow.shipped()[:8]}" if self.start == SMALL else ""
        return f"{self.key}-{self.start}-{self.n}-{self.seed}{base}"


class Factor(NamedTuple):
    """How many times more frames a model from scratch needs; beyond the measured range only a bound is known."""

    value: float
    bound: str  # "", "at least", "at most"


def main(seeds: list[int], steps: int | None, work: Path, size: Size, report: bool) -> None:
    full = size is workflow.FULL
    sets, sizes = (SETS, SIZES) if full else (("acac",), (4, 8))
    points = [Point(key, start, n, seed) for seed in seeds for key in sets for n in sizes for start in STEPS]
    if full:
        restore(HERE / "results.json", work / "sample_efficiency")
    for point in () if report else points:
        file = work / "sample_efficiency" / f"{point.name}.json"
        n_steps = steps or STEPS[point.start]
        workflow.once(file, functools.partial(measure, point, n_steps, work, size))
    results = workflow.collect(work / "sample_efficiency", [point.name for point in points])
    if results:
        tell(dict(zip(points, results, strict=True)), HERE if full else work / "sample_efficiency_report")


def restore(path: Path, folder: Path) -> None:
    """The results that were reported before; those of the shipped model only if that is the same now."""
    earlier, same = workflow.reported(path)
    kept = [one for one in earlier.get("runs", ()) if same or one["start"] != SMALL]
    workflow.restore(kept, folder, lambda one: Point(*(one[key] for key in Point._fields)).name)


def measure(point: Point, steps: int, work: Path, size: Size) -> dict[str, Any]:
    """Train on some frames of a downstream set and measure its tests."""
    chosen = DOWNSTREAM[point.key]
    folder = work / "downstream" / point.name
    (train,) = workflow.files(size, work, [chosen.train])
    tests = {name: workflow.files(size, work, [file]) for name, file in chosen.tests.items()}
    config, facts = beginning(point, train, folder, work, size)
    config = TrainConfig(
        train=(workflow.subset(train, rows(train, point), folder / "train.extxyz.gz"),),
        validation=(spanning(train, tests, work / "data" / f"{point.key}_shape.extxyz.gz", size),),
        max_programs=1,
        ema_decay=0.99,
        **config,
        **workflow.training_settings(steps, point.seed, folder / "run") | {"batch_size": BATCH},
    )
    _, seconds = workflow.train(config)
    potential, params = checkpoints.load(folder / "run" / "model.lamjax", dtype=np.float32)
    labelled = workflow.measured(potential, {"train": (train,), **tests})
    errors = {name: workflow.errors(potential, params, labelled[name]) for name in tests}
    return {**point._asdict(), "steps": steps, "seconds": round(seconds, 1), **facts, "tests": errors}


def beginning(point: Point, train: str, folder: Path, work: Path, size: Size) -> tuple[dict, dict]:
    """What the run begins with, as keys of a TrainConfig, and facts for the results.

    A fine-tuned run begins with a copy of the head that has the least force errors on the frames it is given; its
    energies per element are fitted anew.
    """
    if point.start == "scratch":
        return {"model": workflow.model(size, [HEAD])}, {}
    source = SMALL if point.start == SMALL else base(point.seed, work, size)
    potential, params = checkpoints.load(source, None, dtype=np.float32)
    labelled = workflow.measured(potential, {"train": (train,)})["train"]
    head, heads = workflow.best_head(
        potential, params, potential.config.head_names, workflow.selection(labelled, rows(train, point))
    )
    potential, params = edit.add_head(potential, params, HEAD, source=head)
    checkpoints.save(folder / "base.lamjax", *workflow.one_head(potential, params, HEAD))
    return {"base": str(folder / "base.lamjax"), "bias": "change"}, {"head": head, "heads": heads}


def base(seed: int, work: Path, size: Size) -> Path:
    """The multi-task model of a seed; trained here if it is missing."""
    path = work / "pretraining" / f"{pretraining.MULTI}-{seed}" / "model.lamjax"
    if not path.is_file():
        steps = 3 if size is workflow.QUICK else pretraining.STEPS
        pretraining.pretrain(pretraining.MULTI, seed, steps, work, size)
    return path


def rows(train: str, point: Point) -> list[int]:
    """The frames of a run: the first n in an order that the seed alone decides, so that smaller sets are nested."""
    order = np.random.default_rng(point.seed).permutation(len(workflow.frames(train)))
    return order[: point.n].tolist()


def spanning(train: str, tests: dict, path: Path, size: Size) -> str:
    """The frames that need the largest arrays: as validation set they give all runs one shape, and so one program."""
    return workflow.largest((train, *(file for group in tests.values() for file in group)), path, size.model.shells)


def tell(by_point: dict[Point, dict], out: Path) -> None:
    """Tables, plot and results.json."""
    seeds = sorted({point.seed for point in by_point})
    factors = {(key, test): data_factors(by_point, key, test, seeds) for key, test in tests_of(by_point)}
    command = f"python -m experiments.sample_efficiency.run --seeds {' '.join(map(str, seeds))}"
    facts = workflow.facts(command, sum(one["seconds"] for one in by_point.values()))
    tables = f"{error_table(by_point, factors, seeds)}\n\n{factor_table(factors)}"
    content = {
        f"{key}, {test}": {n: [f._asdict() for f in row] for n, row in rows.items()}
        for (key, test), rows in factors.items()
    }
    facts |= {"base": workflow.shipped(), "data factors": content}
    workflow.write_report(out, {**facts, "runs": list(by_point.values())}, tables)
    plot(out / "sample_efficiency.png", by_point, seeds)


def tests_of(by_point: dict[Point, dict]) -> list[tuple[str, str]]:
    """All (set, test)."""
    return list(dict.fromkeys((point.key, test) for point, one in by_point.items() for test in one["tests"]))


def curve(by_point: dict[Point, dict], key: str, test: str, start: str, seed: int, error="rmse_f") -> dict[int, float]:
    """{frames: error} of one seed."""
    chosen = {p.n: one for p, one in by_point.items() if (p.key, p.start, p.seed) == (key, start, seed)}
    return {n: one["tests"][test][error] for n, one in sorted(chosen.items())}


def data_factors(by_point: dict[Point, dict], key: str, test: str, seeds: list[int]) -> dict[int, list[Factor]]:
    """For every number of frames of fine-tuning the factor in data at equal force error, for every seed."""
    factors: dict[int, list[Factor]] = {}
    for seed in seeds:
        scratch = curve(by_point, key, test, "scratch", seed)
        for n, error in curve(by_point, key, test, SMALL, seed).items():
            factors.setdefault(n, []).append(factor(n, error, scratch))
    return factors


def factor(n: int, error: float, scratch: dict[int, float]) -> Factor:
    """Frames from scratch with that error, divided by n, from straight lines between the logarithms.

    The curve is first made to fall, by the least error up to each number of frames.
    """
    sizes = np.array(list(scratch))
    falling = np.minimum.accumulate(list(scratch.values()))
    if error > falling[0]:
        return Factor(sizes[0] / n, "at most")
    if error < falling[-1]:
        return Factor(sizes[-1] / n, "at least")
    return Factor(float(np.exp(np.interp(-np.log(error), -np.log(falling), np.log(sizes)))) / n, "")


def error_table(by_point: dict[Point, dict], factors: dict, seeds: list[int]) -> str:
    """RMSE on the tests against the number of frames."""
    columns = ["test", "frames"]
    columns += [f"{kind} {LABELS[start]}" for kind in ("forces (meV/Å)", "energy (meV/atom)") for start in STEPS]
    lines = []
    for (key, test), by_size in factors.items():
        for n in by_size:
            cells = [
                workflow.mean_range([curve(by_point, key, test, start, seed, error)[n] for seed in seeds], digits)
                for error, digits in (("rmse_f", 0), ("rmse_e", 1))
                for start in STEPS
            ]
            lines.append([f"{key}, {test}", n, *cells])
    return workflow.markdown(columns, lines)


def factor_table(factors: dict) -> str:
    """The factor in data, geometric mean and range over the seeds; a bound in any seed makes the mean a bound."""
    sizes = list(dict.fromkeys(n for by_size in factors.values() for n in by_size))
    lines = [[f"{key}, {test}", *(mean_factor(by_size[n]) for n in sizes)] for (key, test), by_size in factors.items()]
    lines.append(["DPA-2 paper", *["10 to 100"] * len(sizes)])
    return workflow.markdown(
        ["factor in data at equal force error, small", *(f"{n} frames fine-tuned" for n in sizes)], lines
    )


def mean_factor(factors: list[Factor]) -> str:
    """ "at least 12 (10-15)"."""
    values = [one.value for one in factors]
    bounds = {one.bound for one in factors} - {""}
    bound = (
        "at least " if bounds == {"at least"} else "at most " if bounds == {"at most"} else "about " if bounds else ""
    )
    return f"{bound}{np.exp(np.mean(np.log(values))):.1f} ({min(values):.1f}-{max(values):.1f})"


def plot(path: Path, by_point: dict[Point, dict], seeds: list[int]) -> None:
    """Force RMSE against the number of frames, mean and range over the seeds, a panel a set (its first test)."""
    tests = list({key: (key, test) for key, test in reversed(tests_of(by_point))}.values())[::-1]
    columns = -(-len(tests) // (1 + (len(tests) > 3)))
    shape = (-(-len(tests) // columns), columns)
    caption = f"Lines: mean of {len(seeds)} seeds; bands: their range. Held-out frames, the first test of each set."
    with style.figure(path, (4.2, 3.7), shape, caption=caption) as panels:
        for axes, (key, test) in zip(panels, tests, strict=False):
            for start, color in STARTS.items():
                curves = [curve(by_point, key, test, start, seed) for seed in seeds]
                sizes, values = list(curves[0]), np.array([list(one.values()) for one in curves])
                axes.fill_between(sizes, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
                axes.plot(sizes, values.mean(axis=0), "o-", color=color, label=LABELS[start])
            axes.set(xscale="log", yscale="log", xlabel="training frames", title=f"{key}, {test}")
            axes.set_xticks(sizes, sizes)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.minorticks_off()
            style.name_lines(axes)
        for axes in panels[len(tests) :]:
            axes.remove()
        panels[0].set_ylabel("force RMSE on test (meV/Å)")


if __name__ == "__main__":
    given = workflow.command_line(__doc__, HERE, STEPS)
    main(given.seeds, given.steps, given.work, given.size, given.report)
