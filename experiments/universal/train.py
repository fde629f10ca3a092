"""Pre-train the universal small model: the teachers' heads with most of the weight, real DFT tasks beside.

    python -m experiments.universal.pack
    nice python -m experiments.universal.train --steps 50000      # goes on where it stopped

Writes states, learning curve and model.lamjax (all heads) below build/universal; `publish` ships it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import workflow
from experiments.universal.archive import BLOCKS
from lamjax import PotentialConfig, checkpoints, losses, training
from lamjax.heads import EnergyHeadConfig
from lamjax.training.config import TaskConfig, TrainConfig

WORK = BLOCKS.parent
TEACHERS = {  # head: its set, the share of the steps that go to it; the rest is shared as workflow.PRETRAINING says
    "chgnet": {"chgnet": ("teacher", 0.75)},
    "nequix": {"nequix": ("nequix", 0.6), "chgnet": ("teacher", 0.2)},
}
DEFAULT = "nequix"  # the head of the shipped model that is meant where none is named
DESCRIPTOR = replace(
    workflow.DESCRIPTOR,
    repinit=replace(workflow.DESCRIPTOR.repinit, tebd_dim=16),
    repformer=replace(workflow.DESCRIPTOR.repformer, g1_dim=96),
)
NEURON = (96, 96, 96)  # of every head
OPTIMIZER = training.OptimizerConfig("muon", max_norm=5.0)
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


def tasks(work: Path, teachers: str = DEFAULT) -> dict[str, TaskConfig]:
    """The teachers' sets and the DFT sets of the other experiments, each with its head."""
    taught = {
        head: TaskConfig((str(work / f"{name}.h5"),), (str(work / f"{name}_held_out.h5"),), probability=share)
        for head, (name, share) in TEACHERS[teachers].items()
    }
    real = workflow.tasks(workflow.FULL, work, tuple(workflow.PRETRAINING))
    left = 1 - sum(task.probability for task in taught.values())
    weight = left / sum(task.probability for task in real.values())
    validation = {
        name: workflow.files(workflow.FULL, work, one.validation) for name, one in workflow.PRETRAINING.items()
    }
    return taught | {
        name: replace(task, probability=weight * task.probability, validation=validation[name])
        for name, task in real.items()
    }


def start(base: str | None, chosen: dict[str, TaskConfig]) -> dict[str, Any]:
    """What a run begins from: fresh parameters, or those of `base`, whose heads keep their energies per element.

    A head that the base lacks begins as a copy of its first one, with energies per element of its own labels.
    """
    if base is None:
        heads = tuple((name, EnergyHeadConfig(neuron=NEURON)) for name in chosen)
        return {"tasks": chosen, "model": PotentialConfig(workflow.ELEMENTS, DESCRIPTOR, heads)}
    kept = checkpoints.read(base).config.head_names
    new = [name for name in chosen if name not in kept]
    marked = {name: replace(task, bias="change") if name in new else task for name, task in chosen.items()}
    return {"tasks": marked, "base": base, "bias": "keep", "add_heads": {name: kept[0] for name in new}}


def config(
    work: Path, steps: int, seed: int, rate: float, base: str | None, loss: str, teachers: str = DEFAULT
) -> TrainConfig:
    """The run; with `base` it goes on from the parameters of an earlier one."""
    return TrainConfig(
        **start(base, tasks(work, teachers)),
        loss=LOSSES[loss],
        schedule=training.ScheduleConfig("cosine", start_lr=rate, stop_lr=1e-6, warmup_steps=500),
        optimizer=OPTIMIZER,
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
    parser.add_argument("--teachers", choices=list(TEACHERS), default=DEFAULT)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    workflow.begin(options.work, options.work / "programs")
    workflow.train(config(**vars(options)))
