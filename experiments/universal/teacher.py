"""What the teacher itself says of the held-out frames and the strained crystals: teacher.json.

pip install chgnet==0.4.2
python -m experiments.universal.teacher --every 8
python -m experiments.universal.teacher --only simple     # the rest of the file stays
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
    rows = []
    for atoms in ase.io.read(starts.HELD_OUT, ":"):
        atoms.calc = calculator
        rows.append({"energy": float(atoms.get_potential_energy()), "forces": np.round(atoms.get_forces(), 4).tolist()})
    return rows


def relaxed(calculator, every: int) -> list[dict]:
    """Where the strained crystals end, relaxed with ASE."""
    rows = []
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
        rows.append(
            {"number": number, "converged": converged, "volume": volume, "rmsd": rmsd, "steps": steps}
            | {"n_atoms": len(atoms), "seconds": round(seconds, 2)}
        )
        print(rows[-1], flush=True)
    return rows


def simple(calculator) -> dict[str, float]:
    """V/V(experiment) - 1 of simple crystals, relaxed with ASE at variable cell."""
    ratios = {}
    for name, atoms in starts.simple().items():
        volume = atoms.get_volume()
        atoms.calc = calculator
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=starts.SIMPLE_FMAX, steps=starts.STEPS)
        ratios[name] = atoms.get_volume() / volume - 1
        print(name, round(100 * ratios[name], 1), flush=True)
    return ratios


PARTS = {"held_out": predicted, "relaxed": relaxed, "simple": simple}
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=8, help="relax one crystal in so many")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    options = parser.parse_args()
    import torch
    from chgnet.model.dynamics import CHGNetCalculator

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    calculator = CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")
    output = starts.HERE / "teacher.json"
    content = json.loads(output.read_text()) if output.is_file() else {}
    for part in options.only:
        content[part] = PARTS[part](calculator, **({"every": options.every} if part == "relaxed" else {}))
    output.write_text(json.dumps(content) + "\n")
