"""Pre-train the universal small model: the teacher's head with most of the weight, real DFT tasks beside.

    python -m experiments.universal.pack
    nice python -m experiments.universal.train --steps 50000      # goes on where it stopped

Writes states, learning curve and model.lamjax (all heads) below build/universal; `publish` ships it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from experiments import workflow
from experiments.universal.archive import BLOCKS
from lamjax import PotentialConfig, losses, training
from lamjax.heads import EnergyHeadConfig
from lamjax.training.config import TaskConfig, TrainConfig

WORK = BLOCKS.parent
TEACHER = "chgnet"  # the head that learns the teacher's labels
SHARE = 0.75  # of the steps that go to it; the others' probabilities are those of workflow.PRETRAINING
DESCRIPTOR = replace(
    workflow.DESCRIPTOR,
    repinit=replace(workflow.DESCRIPTOR.repinit, tebd_dim=16),
    repformer=replace(workflow.DESCRIPTOR.repformer, g1_dim=96),
)
NEURON = (96, 96, 96)  # of every head
LOSSES = {
    "wide": losses.LabelLossConfig(  # linear beyond 20 meV/atom, 0.1 eV/Å: frames far from equilibrium don't rule
        use_huber=True,
        huber_delta=(0.02, 0.1, 0.05),
        start_pref_e=25.0,
        limit_pref_e=100.0,
        start_pref_f=10.0,
        limit_pref_f=10.0,
        start_pref_v=1.0,
        limit_pref_v=2.0,
    ),
    "near": losses.LabelLossConfig(  # small forces, which decide where relaxations end, weigh more than large ones
        use_huber=True,
        huber_delta=(0.01, 0.02, 0.02),
        relative_f=0.5,
        start_pref_e=50.0,
        limit_pref_e=200.0,
        start_pref_f=40.0,
        limit_pref_f=40.0,
        start_pref_v=2.5,
        limit_pref_v=5.0,
    ),
}


def tasks(work: Path) -> dict[str, TaskConfig]:
    """The teacher's set and the DFT sets of the other experiments, each with its head."""
    real = workflow.tasks(workflow.FULL, work, tuple(workflow.PRETRAINING))
    weight = (1 - SHARE) / sum(task.probability for task in real.values())
    validation = {
        name: workflow.files(workflow.FULL, work, one.validation) for name, one in workflow.PRETRAINING.items()
    }
    teacher = TaskConfig((str(work / "teacher.h5"),), (str(work / "teacher_held_out.h5"),), probability=SHARE)
    return {TEACHER: teacher} | {
        name: replace(task, probability=weight * task.probability, validation=validation[name])
        for name, task in real.items()
    }


def config(work: Path, steps: int, seed: int, rate: float, base: str | None, loss: str) -> TrainConfig:
    """The run; with `base` it goes on from the parameters of an earlier one."""
    found = tasks(work)
    heads = tuple((name, EnergyHeadConfig(neuron=NEURON)) for name in found)
    begin = {"base": base, "bias": "keep"} if base else {"model": PotentialConfig(workflow.ELEMENTS, DESCRIPTOR, heads)}
    return TrainConfig(
        tasks=found,
        **begin,
        loss=LOSSES[loss],
        schedule=training.ScheduleConfig("cosine", start_lr=rate, stop_lr=1e-6, warmup_steps=500),
        optimizer=training.OptimizerConfig("muon", max_norm=5.0),
        steps=steps,
        batch_size="auto:128",
        max_programs=6,
        ema_decay=0.999,
        seed=seed,
        output=str(work / f"run_{seed}"),
        plots=False,
        print_every=500,
        validate_every=5000,
        save_every=2500,
        keep=1,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first parameters and the order; names the run")
    parser.add_argument("--rate", type=float, default=8e-3, help="the highest learning rate")
    parser.add_argument("--base", help="a model to go on from")
    parser.add_argument("--loss", choices=list(LOSSES), default="near")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    workflow.begin(options.work, options.work / "programs")
    workflow.train(config(options.work, options.steps, options.seed, options.rate, options.base, options.loss))
