"""One process of `dynamics.py`: lamjax's loop, or ASE with lamjax's calculator. Started with its task as JSON."""

import json
import os
import sys

if cores := os.environ.get("BENCHMARK_CORES"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])

import jax
import numpy as np
from backends import memory, reset_peak, timed
from common import versions
from dynamics_deepmd import in_ase, structure

import lamjax
from lamjax import dynamics, edit


def main() -> None:
    task = json.loads(sys.argv[1])
    potential, params = lamjax.load(task["model"], dtype=np.float32)
    if task["tabulate"]:
        potential, params = edit.tabulate(potential, params)
    atoms = structure(task)
    if task["code"] == "ase":
        result = in_ase(atoms, lamjax.Calculator((potential, params), dtype="float32"), task)
    else:
        result = in_loop(atoms, potential, params, task)
    print(json.dumps(result | {"versions": versions(("lamjax", "jax", "ase", "numpy"))}))


def in_loop(atoms, potential, params, task: dict) -> dict:
    """Rounds of the loop on the device; the first one, which compiles, does not count."""
    idle, steps = memory()["resident_mb"], task["steps"]
    ensemble = dynamics.nve(potential, dynamics.NVEConfig(timestep=0.5))
    system = lamjax.from_ase(atoms, np.float32)
    state = {"simulation": dynamics.begin(ensemble, params, system, momenta=atoms.get_momenta())}
    neighbors = lamjax.allocate(potential, system)
    energy = float(jax.jit(potential.energy)(params, system, neighbors))

    def round():
        for simulation, _ in dynamics.simulate(ensemble, params, state["simulation"], steps, every=steps):
            state["simulation"] = jax.block_until_ready(simulation)

    first, _ = timed(round)
    reset_peak()
    calls = [timed(round)[0] for _ in range(task["rounds"])]
    peak = memory()["peak_mb"]
    return {"wall": [c["wall"] for c in calls], "cpu": [c["cpu"] for c in calls]} | {
        "first_s": first["wall"], "energy": energy, "idle_mb": idle, "peak_mb": peak,
    }  # fmt: skip


if __name__ == "__main__":
    main()
