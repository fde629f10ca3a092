"""Small structures that between them show every kind of cell: used all over the tests."""

import ase
import ase.build
import numpy as np


def water_box() -> ase.Atoms:
    """Two water molecules in a 4.2 Å cube, smaller than the usual cutoffs; some atoms lie outside it."""
    box = ase.Atoms(cell=[4.2, 4.2, 4.2], pbc=True)
    for centre, turn in (((0.1, 0.2, 0.3), 20), ((2.3, 2.0, 2.4), 110)):
        molecule = ase.build.molecule("H2O")
        molecule.rotate(turn, (1, 2, 3))
        molecule.translate(centre)
        box += molecule
    return box


def copper() -> ase.Atoms:
    """The primitive cell of fcc copper: one atom, and a cell smaller than any cutoff. Every force is exactly zero."""
    return ase.build.bulk("Cu", "fcc", a=3.615)


def triclinic() -> ase.Atoms:
    """Five atoms of three elements in a strongly skewed cell."""
    cell = [[3.9, 0.0, 0.0], [-1.6, 4.1, 0.0], [1.3, -1.7, 4.4]]
    scaled = [(0.02, 0.05, 0.03), (0.51, 0.48, 0.55), (0.30, 0.81, 0.25), (0.77, 0.28, 0.70), (0.15, 0.52, 0.85)]
    return ase.Atoms("Cu2OHO", scaled_positions=scaled, cell=cell, pbc=True)


def slab() -> ase.Atoms:
    """Copper (111), two layers, periodic in the plane only; the cell ends at the surface."""
    atoms = ase.build.fcc111("Cu", (1, 2, 2), a=3.615, vacuum=None)
    atoms.rattle(0.05, seed=1)
    atoms += ase.Atoms("O", positions=[atoms.positions[-1] + (0.3, 0.2, 1.6)])
    return atoms


def wire() -> ase.Atoms:
    """A zig-zag chain that repeats along one direction only."""
    return ase.Atoms("OHCu", positions=[(0, 0, 0), (0.9, 0.4, 0.1), (2.1, -0.4, 0.7)], cell=[3.7, 0, 0], pbc=[1, 0, 0])


def molecule() -> ase.Atoms:
    """Water near a copper atom, without a cell."""
    atoms = ase.build.molecule("H2O")
    return atoms + ase.Atoms("Cu", positions=[(0.2, 0.3, 2.2)])


def unwrapped() -> ase.Atoms:
    """`triclinic` with its atoms moved by different lattice vectors."""
    atoms = triclinic()
    atoms.positions += np.array([(0, 0, 0), (1, -2, 3), (-4, 0, 1), (0, 7, 0), (2, 2, -2)]) @ atoms.cell.array
    return atoms


ALL = {f.__name__: f for f in (water_box, copper, triclinic, slab, wire, molecule, unwrapped)}
N_ATOMS = 8  # all of them fit
