"""One way of relaxing many crystals, in a process of its own: `python relaxation_runs.py TASK FOLDER`, JSON out.

FOLDER holds crystals.extxyz and settings.json (made by relaxation.py). Every task is done twice: the first time it
compiles what it needs, the second time nothing.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

import lamjax
from lamjax import classical, relaxation
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.system import host_system


def main(task: str, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["cores"]])
    run = {"stream": run_stream, "ase": run_ase, "pair": run_pair}[task]
    with jax.enable_x64(True):
        passes = [run(folder, settings) for _ in range(2)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10)
    print(json.dumps({"passes": passes, "peak_mb": peak, "versions": {"lamjax": lamjax.__version__}}))


def run_stream(folder: Path, settings: dict) -> dict:
    """The model, all crystals in flight; the network in float32."""
    potential, params = model(settings)
    return streamed(potential, params, ase.io.read(folder / "crystals.extxyz", ":"), config(settings), np.float64)


def run_pair(folder: Path, settings: dict) -> dict:
    """Lennard-Jones, all crystals in flight, in float64."""
    numbers = settings["pair"]
    potential = classical.lennard_jones(numbers["sigma"], numbers["epsilon"], numbers["cutoff"], numbers["start"])
    crystals = ase.io.read(folder / "scaled.extxyz", ":")
    return streamed(potential, potential.init(dtype=np.float64), crystals, config(settings), np.float64)


def streamed(potential, params, crystals, settings: RelaxConfig, dtype) -> dict:
    systems = [host_system(atoms, dtype) for atoms in crystals]
    clock = Clock()
    outcomes = sorted(relaxation.stream(potential, params, systems, settings))
    time_taken = clock.read()
    at_once = sorted(relaxation.stream(potential, params, systems, dataclasses.replace(settings, max_steps=0)))
    results = [outcome.relaxation for outcome in outcomes]
    return time_taken | {
        "starts": [float(outcome.relaxation.energy) for outcome in at_once],
        "steps": [int(r.n_steps) for r in results],
        "energies": [float(r.energy) for r in results],
        "converged": [bool(r.converged) for r in results],
    }


CALCULATORS: dict[str, lamjax.Calculator] = {}


def run_ase(folder: Path, settings: dict) -> dict:
    """ASE's FIRE with lamjax's calculator in float32, one crystal after another."""
    chosen = settings["subset"]
    every = ase.io.read(folder / "crystals.extxyz", ":")
    calculator = CALCULATORS.setdefault("model", lamjax.Calculator(settings["model"], dtype="float32"))
    results: dict[str, list] = {"steps": [], "energies": [], "converged": []}
    clock = Clock()
    for k in chosen:
        atoms = every[k]
        atoms.calc = calculator
        optimizer = FIRE(FrechetCellFilter(atoms) if settings["cell"] else atoms, logfile=None)
        try:
            converged = optimizer.run(fmax=settings["fmax"], steps=settings["max_steps"])
            energy = float(atoms.get_potential_energy())
        except FloatingPointError:
            converged, energy = False, float("nan")
        results["steps"].append(optimizer.nsteps)
        results["energies"].append(energy)
        results["converged"].append(bool(converged))
    return clock.read() | results | {"subset": chosen}


class Clock:
    """Seconds since it was made: of wall time and of all threads."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


def model(settings: dict):
    """Potential and float32 parameters."""
    potential, params = lamjax.load(settings["model"])
    cast = lambda x: jnp.asarray(x, np.float32) if x.dtype == np.float64 else x  # noqa: E731
    return potential, jax.tree.map(cast, params)


def config(settings: dict) -> RelaxConfig:
    relaxation = RelaxConfig(fmax=settings["fmax"], max_steps=settings["max_steps"])
    return dataclasses.replace(relaxation, cell=CellConfig()) if settings["cell"] else relaxation


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
