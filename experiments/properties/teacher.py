"""Moduli of the teacher, CHGNet, by finite strains with relaxing atoms: labels to train on, and its own errors.

pip install chgnet==0.4.2
python -m experiments.properties.teacher        # goes on where it stopped
"""

import argparse
import json
import time
import warnings

import ase
import ase.io
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.units import GPa

from experiments.properties import crystals
from experiments.properties.crystals import HERE, LABELS, N_BESIDE, N_LABELLED

FMAX, STEPS = 0.005, 500  # eV/Å
STRAIN = 0.005
RECORDS = HERE / "teacher.json"


def elastic_tensor(atoms: ase.Atoms, fmax: float = FMAX, size: float = STRAIN) -> np.ndarray:
    """Elastic constants (GPa, Voigt) by central differences of the stress, the atoms relaxed at each strain."""
    tensor = np.zeros((6, 6))
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        stresses = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * size / 2
            strain[j, i] += sign * size / 2
            one = atoms.copy()
            one.calc = atoms.calc
            one.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            FIRE(one, logfile=None).run(fmax=fmax, steps=STEPS)
            stresses.append(one.get_stress())
        tensor[k] = (stresses[0] - stresses[1]) / (2 * size) / GPa
    return (tensor + tensor.T) / 2


def moduli(tensor: np.ndarray) -> tuple[float, float]:
    """Bulk and shear modulus, the means of Voigt and Reuss."""
    k = [(np.trace(tensor[:3, :3]) + 2 * (tensor[0, 1] + tensor[0, 2] + tensor[1, 2])) / 9]
    off = tensor[0, 1] + tensor[0, 2] + tensor[1, 2]
    g = [(np.trace(tensor[:3, :3]) - off + 3 * np.trace(tensor[3:, 3:])) / 15]
    s = np.linalg.inv(tensor)
    k.append(1 / s[:3, :3].sum())
    g.append(15 / (4 * np.trace(s[:3, :3]) - 4 * (s[0, 1] + s[0, 2] + s[1, 2]) + 3 * np.trace(s[3:, 3:])))
    return float(np.mean(k)), float(np.mean(g))


def measured(calculator, atoms: ase.Atoms) -> dict:
    """Volume and elastic constants of the crystal that the teacher relaxes this one to."""
    began, atoms = time.process_time(), atoms.copy()
    atoms.calc = calculator
    converged = bool(FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=STEPS))
    record = {"formula": atoms.get_chemical_formula(), "converged": converged, "n_atoms": len(atoms)}
    record |= {"volume": float(atoms.get_volume()), "cell": atoms.cell.tolist(), "positions": atoms.positions.tolist()}
    record["numbers"] = atoms.numbers.tolist()
    if converged:
        tensor = elastic_tensor(atoms)
        k, g = moduli(tensor)
        scale = np.sqrt([1, 1, 1, 2, 2, 2])
        stable = bool(np.linalg.eigvalsh(tensor * np.outer(scale, scale))[0] > 0)
        record |= {"tensor": np.round(tensor, 3).tolist(), "bulk_modulus": k, "shear_modulus": g, "stable": stable}
    return record | {"seconds": round(time.process_time() - began, 2)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    import torch
    from chgnet.model.dynamics import CHGNetCalculator

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    calculator = CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")
    jobs = {"train": crystals.candidates()[:N_LABELLED], "beside": crystals.elastic(N_BESIDE)}
    records = json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}
    for name, some in jobs.items():
        for atoms in some[len(records.setdefault(name, [])) :]:
            try:
                records[name].append(measured(calculator, atoms))
            except Exception as error:  # atoms that the teacher's graph cannot hold
                records[name].append({"formula": atoms.get_chemical_formula(), "converged": False, "error": str(error)})
            print(name, {key: records[name][-1].get(key) for key in ("formula", "bulk_modulus", "seconds")}, flush=True)
            RECORDS.write_text(json.dumps(records) + "\n")
    ase.io.write(LABELS, [labelled(one) for one in records["train"] if one.get("stable")], "extxyz")


def labelled(record: dict) -> ase.Atoms:
    """The relaxed crystal of a record with its moduli and volume, as `lamjax finetune-properties` reads them."""
    atoms = ase.Atoms(record["numbers"], record["positions"], cell=record["cell"], pbc=True)
    atoms.info |= {"formula": record["formula"], "volume": record["volume"], "bulk_modulus_GPa": record["bulk_modulus"]}
    atoms.info["shear_modulus_GPa"] = record["shear_modulus"]
    return atoms


if __name__ == "__main__":
    main()
