"""Train the small DPA-2 that `lamjax demo` starts from, on PBE frames of main-group elements (and Mo).

    python experiments/base_pbe/run.py --steps 16000 --seed 0

Writes log.csv, base.lamjax and results.json beside this file, and the table into the README.
"""

import argparse
import csv
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

import lamjax
from lamjax import data, losses, pytree, training
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "pbe_main_group"

DESCRIPTOR = DPA2Config(  # about a quarter of DPA-2 small, so that relaxations on a laptop take seconds
    repinit=RepinitConfig(rcut=6.0, rcut_smth=0.5, nsel=160, neuron=(16, 32, 64), axis_neuron=8),
    three_body=ThreeBodyConfig(rcut=4.0, rcut_smth=2.5, sel=60),
    repformer=RepformerConfig(
        rcut=4.5,
        rcut_smth=3.0,
        nsel=80,
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
    start_pref_e=0.02,
    limit_pref_e=1.0,
    start_pref_f=100.0,
    limit_pref_f=10.0,
    start_pref_v=0.02,
    limit_pref_v=0.1,
)
BATCH = "auto:96"  # atoms


def main(steps: int, seed: int) -> None:
    began = time.time()
    frames = data.read(DATA / "train.extxyz.gz", require=("energy", "forces"))
    order = np.random.default_rng(seed).permutation(len(frames))
    train, validation = [frames[k] for k in order[60:]], [frames[k] for k in order[:60]]
    test = data.read(DATA / "test.extxyz.gz")
    elements = tuple(data.summarize(frames).elements)

    config = lamjax.PotentialConfig(elements, DESCRIPTOR, (("PBE", EnergyHeadConfig(neuron=(96, 96, 96))),))
    potential = lamjax.build(config)
    params = data.set_statistics(potential, potential.init(jax.random.key(seed)), train)
    plan = data.plan(frames + test, potential.shells, max_programs=6)
    print(f"{len(train)} frames, {len(elements)} elements, {pytree.n_parameters(params):,} parameters")
    print(f"{plan.n_programs} shapes, {100 * plan.waste:.0f} % of the work on padding")
    packed = {name: data.pack(f, plan) for name, f in (("train", train), ("validation", validation), ("test", test))}

    loss = losses.label_loss(potential, LOSS)
    rate = training.schedule(
        training.ScheduleConfig(start_lr=2e-3, stop_lr=1e-5, decay_steps=200, warmup_steps=200), steps
    )
    optimizer = training.optimizer(training.OptimizerConfig("adam", max_norm=5.0), rate)
    state = training.init(params, optimizer, ema=True)
    batches = data.batches(packed["train"], BATCH, seed=seed)
    stream = (next(batches) for _ in range(steps))
    run = training.fit(
        loss,
        state,
        optimizer,
        stream,
        lr_ratio=lambda step: rate(step) / 2e-3,
        ema_decay=0.999,
        sources=packed["train"].sources,
    )

    def errors(params, name):
        return training.evaluate(loss, params, data.batches(packed[name], BATCH, seed=None, epochs=1))

    state = follow(run, potential, lambda params: errors(params, "validation"), rate, steps)
    results = {name: errors(state.ema, name) for name in ("validation", "test")}
    command = f"python experiments/base_pbe/run.py --steps {steps} --seed {seed}"
    lamjax.save(HERE / "base.lamjax", potential, state.ema, card(command, results))
    results |= {
        "steps": steps,
        "seed": seed,
        "seconds": round(time.time() - began),
        "loss": asdict(LOSS),
        "versions": {"lamjax": "0.1.0", "jax": jax.__version__, "python": platform.python_version()},
        "hardware": f"{os.cpu_count()} cores {platform.machine()}, {jax.devices()[0].device_kind}",
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_table(results)


def follow(run, potential, validate: Callable, rate: Callable, steps: int) -> training.TrainState:
    """The state after all steps of a run; errors every 500 steps are printed and written, models every 2000."""
    began, recent = time.time(), []
    with open(HERE / "log.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(
            ["step", "lr", "train_e_meV", "train_f_meV_A", "validation_e_meV", "validation_f_meV_A", "seconds"]
        )
        for step, (state, metrics) in enumerate(run, start=1):
            recent.append({k: v for k, v in metrics.items() if k.endswith(("_sq", "_abs", "_n"))})
            if step % 500 and step != steps:
                continue
            now, held = losses.errors(training.add(recent)), validate(state.ema)
            recent = []
            row = [1e3 * x for x in (now["rmse_e"], now["rmse_f"], held["rmse_e"], held["rmse_f"])]
            log.writerow([step, float(rate(step)), *(round(x, 2) for x in row), round(time.time() - began)])
            file.flush()
            print(
                f"{step:6d}  train E {row[0]:6.1f} F {row[1]:6.0f}   validation E {row[2]:6.1f} F {row[3]:6.0f}",
                flush=True,
            )
            if step % 2000 == 0:
                lamjax.save(HERE / "base.lamjax", potential, state.ema, {"unfinished": f"step {step} of {steps}"})
    return state


def card(command: str, errors: dict[str, dict[str, float]]) -> dict:
    """What is to be known of the model."""
    return {
        "what": "A small DPA-2 for demonstrations: silicon with H, B, Mg, Al, P, As and other main-group elements.",
        "not good for": "production: it saw 1,115 frames. Charged cells, magnetism, anything far from its data.",
        "data": "pbe_main_group: mlearn, MPtrj, Alexandria and MatterSim frames (VASP PBE), see PROVENANCE.json",
        "data licence": "BSD-3-Clause (mlearn), MIT (MatterSim repository)",
        "made by": command,
        "errors": errors,
    }


def write_table(results: dict) -> None:
    """Put the errors between the two marks in the README, and print them."""
    lines = ["| frames | energy RMSE (meV/atom) | force RMSE (meV/Å) | virial RMSE (meV/atom) |", "|---|---|---|---|"]
    for name in ("validation", "test"):
        e = results[name]
        lines.append(f"| {name} | {1e3 * e['rmse_e']:.1f} | {1e3 * e['rmse_f']:.0f} | {1e3 * e['rmse_v']:.0f} |")
    table = "\n".join(lines)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- table of run.py -->\n")
    after = rest.partition("<!-- end of table -->")[2]
    readme.write_text(f"{before}<!-- table of run.py -->\n{table}\n<!-- end of table -->{after}")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
