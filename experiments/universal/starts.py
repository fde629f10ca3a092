"""What the shipped model and its teacher are both asked: held-out DFT frames and strained crystals to relax."""

from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
HELD_OUT = DATA / "materials_pbeu" / "validation.extxyz.gz"  # formulas that neither model's labels were asked about
CRYSTALS = DATA / "bench_wbm972" / "relaxed.extxyz.gz"
STRAIN, DISPLACEMENT = 0.05, 0.05  # standard deviations: of the strain's components; Å
FMAX, STEPS = 0.05, 500  # eV/Å
SIMPLE_FMAX = 0.002  # eV/Å; of cells of one or two atoms, whose stress times volume is as small


def crystals(every: int = 1) -> list[ase.Atoms]:
    """Crystals as DFT relaxed them, one in `every`."""
    return ase.io.read(CRYSTALS, f"::{every}")


def strained(atoms: ase.Atoms, number: int) -> ase.Atoms:
    """The start of a relaxation: a random symmetric strain of the cell, atoms displaced at random."""
    start = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    return perturbed(start, 1.0, STRAIN, DISPLACEMENT, np.random.default_rng((17, number)))


def perturbed(atoms: ase.Atoms, volume: float, strain: float, displacement: float, rng) -> ase.Atoms:
    """The cell scaled to `volume` and strained, atoms displaced by normal deviates (Å)."""
    atoms = atoms.copy()
    epsilon = strain * rng.normal(size=(3, 3))
    change = volume ** (1 / 3) * (np.eye(3) + (epsilon + epsilon.T) / 2)
    atoms.set_cell(atoms.cell.array @ change, scale_atoms=True)
    atoms.positions += displacement * rng.normal(size=(len(atoms), 3))
    return atoms


def away(end: ase.Atoms, target: ase.Atoms) -> tuple[float, float]:
    """(V/V_DFT - 1, RMSD in Å of the fractional coordinates in the DFT cell, after their mean shift is taken off).

    Both cells hold the same atoms in the same order, so that no matching is needed.
    """
    difference = end.get_scaled_positions(wrap=False) - target.get_scaled_positions(wrap=False)
    difference -= np.round(difference)
    difference -= difference.mean(axis=0)
    moved = difference @ target.cell.array
    return end.get_volume() / target.get_volume() - 1, float(np.sqrt(np.mean(np.sum(moved**2, axis=1))))


# lattice constants at room temperature (Å; hexagonal: a, c), common handbook values
SIMPLE: dict[str, tuple[str, tuple[float, ...]]] = {
    **{"Li": ("bcc", (3.51,)), "Na": ("bcc", (4.29,)), "K": ("bcc", (5.33,)), "Cs": ("bcc", (6.14,))},
    **{"Fe": ("bcc", (2.87,)), "W": ("bcc", (3.17,)), "Al": ("fcc", (4.05,)), "Cu": ("fcc", (3.61,))},
    **{"Au": ("fcc", (4.08,)), "Pb": ("fcc", (4.95,)), "Mg": ("hcp", (3.21, 5.21)), "Ti": ("hcp", (2.95, 4.68))},
    **{"C": ("diamond", (3.57,)), "Si": ("diamond", (5.43,)), "Ge": ("diamond", (5.66,))},
    **{"GaAs": ("zincblende", (5.65,)), "ZnS": ("zincblende", (5.41,)), "SiC": ("zincblende", (4.36,))},
    **{"NaCl": ("rocksalt", (5.64,)), "MgO": ("rocksalt", (4.21,)), "LiF": ("rocksalt", (4.03,))},
    **{"CsCl": ("cesiumchloride", (4.12,)), "CaF2": ("fluorite", (5.46,)), "GaN": ("wurtzite", (3.19, 5.19))},
}


def simple() -> dict[str, ase.Atoms]:
    """The crystals of `SIMPLE` as measured."""
    measured = {}
    for name, (kind, (a, *c)) in SIMPLE.items():
        measured[name] = ase.build.bulk(name, kind, a=a, **({"c": c[0]} if c else {}))
    return measured
