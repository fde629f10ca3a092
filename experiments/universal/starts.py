"""What the shipped model and its teacher are both asked: held-out DFT frames and strained crystals to relax."""

from pathlib import Path

import ase
import ase.io
import numpy as np

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
HELD_OUT = DATA / "materials_pbeu" / "validation.extxyz.gz"  # formulas that neither model's labels were asked about
CRYSTALS = DATA / "bench_wbm972" / "relaxed.extxyz.gz"
STRAIN, DISPLACEMENT = 0.05, 0.05  # standard deviations: of the strain's components; Å
FMAX, STEPS = 0.05, 500  # eV/Å


def crystals(every: int = 1) -> list[ase.Atoms]:
    """Crystals as DFT relaxed them, one in `every`."""
    return ase.io.read(CRYSTALS, f"::{every}")


def strained(atoms: ase.Atoms, number: int) -> ase.Atoms:
    """The start of a relaxation: a random symmetric strain of the cell, atoms displaced at random."""
    rng = np.random.default_rng((17, number))
    start = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    epsilon = STRAIN * rng.normal(size=(3, 3))
    start.set_cell(start.cell.array @ (np.eye(3) + (epsilon + epsilon.T) / 2), scale_atoms=True)
    start.positions += DISPLACEMENT * rng.normal(size=(len(start), 3))
    return start


def away(end: ase.Atoms, target: ase.Atoms) -> tuple[float, float]:
    """(V/V_DFT - 1, RMSD in Å of the fractional coordinates in the DFT cell, after their mean shift is taken off).

    Both cells hold the same atoms in the same order, so that no matching is needed.
    """
    difference = end.get_scaled_positions(wrap=False) - target.get_scaled_positions(wrap=False)
    difference -= np.round(difference)
    difference -= difference.mean(axis=0)
    moved = difference @ target.cell.array
    return end.get_volume() / target.get_volume() - 1, float(np.sqrt(np.mean(np.sum(moved**2, axis=1))))
