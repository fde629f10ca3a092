"""One process of `dynamics.py`: DeePMD-kit's own ASE calculator; and what is common to all codes. No lamjax here."""

import json
import os
import sys
import tempfile

import ase
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet
from backends import memory, reset_peak, timed
from common import Frames, versions


def structure(task: dict) -> ase.Atoms:
    """Water repeated to so many atoms, with momenta of 300 K; the same for every code."""
    frames = Frames.read(task["water"])
    one = ase.Atoms(frames.numbers[0], frames.positions[0], cell=frames.cell[0], pbc=True)
    copies, k = [1, 1, 1], 0
    while len(one) * np.prod(copies) < task["n_atoms"]:
        copies[k % 3] *= 2
        k += 1
    atoms = one * copies
    if len(atoms) != task["n_atoms"]:
        raise SystemExit(f"{task['n_atoms']} atoms cannot be made: take 192 times a power of two.")
    velocity = np.random.default_rng(0).normal(size=(len(atoms), 3))
    atoms.set_momenta(velocity * np.sqrt(atoms.get_masses() * 300 * units.kB)[:, None])
    return atoms


def in_ase(atoms: ase.Atoms, calculator, task: dict) -> dict:
    """Rounds of ASE's velocity Verlet; the first one, which compiles, does not count."""
    idle = memory()["resident_mb"]
    atoms.calc = calculator
    energy = float(atoms.get_potential_energy())
    moves = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    first, _ = timed(lambda: moves.run(task["steps"]))
    reset_peak()
    calls = [timed(lambda: moves.run(task["steps"]))[0] for _ in range(task["rounds"])]
    peak = memory()["peak_mb"]
    return {"wall": [c["wall"] for c in calls], "cpu": [c["cpu"] for c in calls]} | {
        "first_s": first["wall"], "energy": energy, "idle_mb": idle, "peak_mb": peak,
    }  # fmt: skip


def main() -> None:
    task = json.loads(sys.argv[1])
    if cores := os.environ.get("BENCHMARK_CORES"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    from deepmd.calculator import DP  # it reads how many threads it may use
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt.utils.serialization import deserialize_to_file

    with tempfile.TemporaryDirectory() as folder:
        deserialize_to_file(f"{folder}/frozen.pth", load_dp_model(task["model"]))
        result = in_ase(structure(task), DP(model=f"{folder}/frozen.pth"), task)
    print(json.dumps(result | {"versions": versions(("deepmd-kit", "torch", "ase", "numpy"))}))


if __name__ == "__main__":
    main()
