"""The Lennard-Jones crystals of relaxation.py with torch-sim: `python relaxation_torchsim.py FOLDER`, JSON out.

It runs in an environment of its own: torch-sim 0.6 or newer, and no lamjax.
"""

import functools
import json
import os
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch_sim
from torch_sim.models.lennard_jones import lennard_jones_pair
from torch_sim.models.pair_potential import PairPotentialModel


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["cores"]])
    torch.set_num_threads(settings["cores"])
    data = np.load(folder / "scaled.npz")
    passes = [run(settings, data) for _ in range(2)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10)
    versions = {name: version(name) for name in ("torch", "torch-sim-atomistic")}
    print(json.dumps({"passes": passes, "peak_mb": peak, "versions": versions}))


def run(settings: dict, data) -> dict:
    """All crystals in flight (`InFlightAutoBatcher`), FIRE."""
    numbers, cell = settings["pair"], settings["cell"]
    pair = functools.partial(switched, **numbers)
    model = PairPotentialModel(
        pair, cutoff=numbers["cutoff"], dtype=torch.float64, compute_stress=cell, reduce_to_half_list=True
    )
    steps = Counted()
    wall, cpu = time.perf_counter(), time.process_time()
    batcher = torch_sim.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=settings["atoms"])
    states = torch_sim.concatenate_states(crystals(data))
    done = torch_sim.optimize(
        system=states,
        model=model,
        optimizer=torch_sim.Optimizer.fire,
        convergence_fn=steps.watch(torch_sim.generate_force_convergence_fn(settings["fmax"], include_cell_forces=cell)),
        autobatcher=batcher,
        max_steps=settings["max_steps"],
        init_kwargs={"cell_filter": torch_sim.CellFilter.frechet} if cell else None,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    converged = torch_sim.generate_force_convergence_fn(settings["fmax"], include_cell_forces=cell)(done, None)
    return {
        "wall": wall,
        "cpu": cpu,
        "evaluations": steps.evaluations,
        "starts": model(torch_sim.concatenate_states(crystals(data)))["energy"].tolist(),
        "energies": done.energy.tolist(),
        "converged": converged.tolist(),
    }


class Counted:
    """Counts evaluations of structures: it is asked every fifth step (`steps_between_swaps`) for all in flight."""

    def __init__(self):
        self.evaluations = 0

    def watch(self, converged):
        def watched(state, last_energy):
            self.evaluations += 5 * state.n_systems
            return converged(state, last_energy)

        return watched


def crystals(data) -> list[torch_sim.SimState]:
    """A state for each crystal."""
    made = []
    for k in range(int(data["n"])):
        numbers = torch.as_tensor(data[f"numbers{k}"])
        made.append(
            torch_sim.SimState(
                positions=torch.as_tensor(data[f"positions{k}"]),
                masses=torch.ones(len(numbers), dtype=torch.float64),
                cell=torch.as_tensor(data[f"cell{k}"].T.copy())[None],
                pbc=True,
                atomic_numbers=numbers,
            )
        )
    return made


def switched(r, zi, zj, *, sigma: float, epsilon: float, cutoff: float, start: float):
    """The energy of `lamjax.classical.lennard_jones`."""
    u = torch.clamp((r - start) / (cutoff - start), 0, 1)
    return lennard_jones_pair(r, zi, zj, sigma, epsilon) * (1 + u * u * u * (-10 + u * (15 - 6 * u)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
