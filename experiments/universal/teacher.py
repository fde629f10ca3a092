"""What the teacher itself says of the held-out frames and the strained crystals: teacher.json.

pip install chgnet==0.4.2
python -m experiments.universal.teacher --every 8
"""

import argparse
import json
import time
import warnings

import ase.io
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from experiments.universal import starts


def predicted(calculator) -> list[dict]:
    """Energies (eV) and forces (eV/Å) of the held-out frames."""
    found = []
    for atoms in ase.io.read(starts.HELD_OUT, ":"):
        atoms.calc = calculator
        found.append(
            {"energy": float(atoms.get_potential_energy()), "forces": np.round(atoms.get_forces(), 4).tolist()}
        )
    return found


def relaxed(calculator, every: int) -> list[dict]:
    """Where the strained crystals end, relaxed with ASE."""
    found = []
    for row, target in enumerate(starts.crystals(every)):
        number = row * every
        atoms = starts.strained(target, number)
        atoms.calc = calculator
        began = time.process_time()
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        try:
            converged = bool(optimizer.run(fmax=starts.FMAX, steps=starts.STEPS))
        except Exception as error:  # atoms that the teacher's graph cannot hold
            print(f"crystal {number}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            converged = False
        volume, rmsd = starts.away(atoms, target)
        seconds, steps = time.process_time() - began, optimizer.nsteps
        found.append(
            {"number": number, "converged": converged, "volume": volume, "rmsd": rmsd, "steps": steps}
            | {"n_atoms": len(atoms), "seconds": round(seconds, 2)}
        )
        print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=8, help="relax one crystal in so many")
    options = parser.parse_args()
    import torch
    from chgnet.model.dynamics import CHGNetCalculator

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    calculator = CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")
    content = {"held_out": predicted(calculator), "relaxed": relaxed(calculator, options.every)}
    (starts.HERE / "teacher.json").write_text(json.dumps(content) + "\n")
