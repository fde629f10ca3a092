"""What is said of a relaxed structure: a slab or molecule in a periodic cell is no crystal."""

from types import SimpleNamespace

import ase.build
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax.properties import survey


def wide(atoms: ase.Atoms, axes: str, skewed: bool = False) -> ase.Atoms:
    """The structure with 9 Å of empty space along some lattice vectors."""
    atoms = atoms.copy()
    for axis in axes:
        ase.build.add_vacuum(atoms, 9.0) if axis == "c" else atoms.set_cell(
            atoms.cell.array + 9.0 * np.outer(np.eye(3)["abc".index(axis)], np.eye(3)["abc".index(axis)])
        )
    if skewed:
        atoms.set_cell(np.array([[1, 0, 0], [0, 1, 0], [1, -1, 1]]) @ atoms.cell.array)
    atoms.positions += [0.3, -4.1, 7.7]  # across the faces
    return atoms


@pytest.mark.parametrize(("axes", "kind"), [("", None), ("c", "a slab"), ("bc", "a wire"), ("abc", "a molecule")])
@pytest.mark.parametrize("skewed", [False, True])
def test_empty_space_in_a_periodic_cell_is_named(axes, kind, skewed):
    potential = crystals.potential_of("lennard_jones")
    system = lamjax.from_ase(wide(ase.build.bulk("Cu", "fcc", a=1.86, cubic=True), axes, skewed))
    relaxed = SimpleNamespace(system=system, converged=True, n_steps=1, fmax=0.0, energy=-1.0)
    remark = survey.state(system, relaxed, potential, True).get("remark")
    if kind is None:
        assert remark is None
    else:
        assert kind in remark and all(f"Å along {axis}" in remark for axis in axes)
        assert remark.count("Å along") == len(axes)
