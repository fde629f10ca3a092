"""How far do Adam and Muon come in the same number of steps?

    python -m experiments.optimizers.run

from the root of the repository. The same command in several shells shares the runs out among them, and a run that is
killed goes on where it was. When all are done, results.json, the table in the README and the plot are written.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import workflow
from experiments.workflow import HEAD, PRETRAINING, Size
from lamjax import checkpoints, training
from lamjax.reports import style
from lamjax.training.config import TrainConfig

HERE = Path(__file__).parent
TASK = "gfn2xtb"
STEPS = 2500


class Setting(NamedTuple):
    """What is compared: an optimiser of optax, the shape of the learning rate, and where that begins."""

    optimizer: str
    schedule: str
    start_lr: float

    @property
    def name(self) -> str:
        """Of its files, and in the table."""
        return f"{self.optimizer} {self.schedule} {self.start_lr:g}"


SETTINGS = (
    Setting("adam", "exp", 1e-3),  # as DeePMD-kit's examples
    Setting("adam", "cosine", 1e-3),
    Setting("adam", "cosine", 5e-3),
    Setting("muon", "cosine", 1e-3),
    Setting("muon", "cosine", 5e-3),
    Setting("muon", "cosine", 1e-2),
)


def main(seeds: list[int], steps: int, work: Path, size: Size, report: bool) -> None:
    settings = SETTINGS if size is workflow.FULL else SETTINGS[-1:]
    runs = [(setting, seed) for seed in seeds for setting in settings]
    for setting, seed in () if report else runs:
        file = work / "optimizers" / f"{setting.name}-{seed}.json"
        workflow.once(file, functools.partial(measure, setting, seed, steps, work, size))
    results = workflow.collect(work / "optimizers", [f"{setting.name}-{seed}" for setting, seed in runs])
    if results:
        tell(dict(zip(runs, results, strict=True)), HERE if size is workflow.FULL else work / "optimizers_report")


def measure(setting: Setting, seed: int, steps: int, work: Path, size: Size) -> dict[str, Any]:
    """Train on one task and measure its held-out frames."""
    output = work / "optimizers" / f"{setting.name}-{seed}"
    settings = workflow.training_settings(steps, seed, output) | {
        "optimizer": training.OptimizerConfig(setting.optimizer, max_norm=5.0),
        "schedule": training.ScheduleConfig(
            setting.schedule,
            start_lr=setting.start_lr,
            stop_lr=1e-5,
            decay_steps=max(1, steps // 80),
            warmup_steps=min(200, steps // 10),
        ),
        "batch_size": "auto:48",
        "validate_every": max(1, steps // 10),
    }
    config = TrainConfig(
        train=workflow.files(size, work, PRETRAINING[TASK].train),
        validation=workflow.files(size, work, PRETRAINING[TASK].validation),
        model=workflow.model(size, [HEAD]),
        max_programs=min(3, size.max_programs),
        ema_decay=0.99,
        **settings,
    )
    curve: list[tuple[int, float]] = []
    _, seconds = workflow.train(config, curve)
    potential, params = checkpoints.load(output / "model.lamjax", dtype=np.float32)
    held_out = workflow.measured(potential, {TASK: config.validation}, max_programs=3)[TASK]
    errors = workflow.errors(potential, params, held_out, workflow.energy_shift(potential, params, held_out))
    return {**setting._asdict(), "seed": seed, "steps": steps, "seconds": round(seconds, 1), "curve": curve, **errors}


def tell(by_run: dict[tuple[Setting, int], dict], out: Path) -> None:
    """Table, plot and results.json."""
    settings, seeds = list(dict.fromkeys(setting for setting, _ in by_run)), sorted({seed for _, seed in by_run})
    facts = workflow.facts(
        f"python -m experiments.optimizers.run --seeds {' '.join(map(str, seeds))}",
        sum(one["seconds"] for one in by_run.values()),
    )
    rows = []
    for setting in settings:
        columns = [[by_run[setting, seed][key] for seed in seeds] for key in ("rmse_f", "rmse_e", "seconds")]
        cells = [workflow.mean_range(values, digits) for values, digits in zip(columns, (0, 1, 0), strict=True)]
        rows.append([setting.optimizer, setting.schedule, f"{setting.start_lr:g}", *cells])
    columns = ["optimiser", "schedule", "start_lr", "forces (meV/Å)", "energy (meV/atom)", "seconds"]
    workflow.write_report(out, {**facts, "runs": list(by_run.values())}, workflow.markdown(columns, rows))
    plot(out / "optimizers.png", by_run, settings, seeds)


def plot(path: Path, by_run: dict[tuple[Setting, int], dict], settings: list[Setting], seeds: list[int]) -> None:
    """Force RMSE on held-out frames during training, a line a seed."""
    with style.figure(path, (7.5, 4.2), caption=f"Held-out frames of {TASK}; {len(seeds)} seeds, a line each.") as (
        axes,
    ):
        for color, setting in zip(style.LINES, settings, strict=False):
            for seed in seeds:
                steps, errors = zip(*by_run[setting, seed]["curve"], strict=True)
                label = setting.name if seed == seeds[0] else None
                axes.plot(steps, np.array(errors) * 1000, color=color, label=label, linewidth=1.3)
        axes.set(xlabel="step", ylabel="force RMSE on held-out frames (meV/Å)", ylim=(0, None))
        style.name_lines(axes)


if __name__ == "__main__":
    given = workflow.command_line(__doc__, HERE, STEPS)
    main(given.seeds, given.steps or STEPS, given.work, given.size, given.report)
