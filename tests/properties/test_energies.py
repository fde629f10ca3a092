"""Energies of formation, of a vacancy and of a surface, against differences of ASE's; and what does not fit."""

import ase
import ase.build
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import properties
from lamjax.properties import PropertyConfig

POTENTIAL = crystals.potential_of("lennard_jones")
PARAMS = POTENTIAL.init()
STILL = PropertyConfig(response=None)


def energy(atoms: ase.Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = lamjax.Calculator((POTENTIAL, PARAMS))
    return atoms.get_potential_energy()


def pair(atoms: ase.Atoms):
    return crystals.room(POTENTIAL, atoms)


def test_formation_and_cohesive_energies_are_differences():
    crystal = ase.build.bulk("CuAu", "rocksalt", a=2.4)
    references = {"Cu": -0.1, "Au": -0.3}
    defect = properties.formation_energy(POTENTIAL, PARAMS, *pair(crystal), references, STILL)
    assert defect.energy == pytest.approx((energy(crystal) + 0.4) / 2, abs=1e-10)
    bound = properties.cohesive_energy(POTENTIAL, PARAMS, *pair(crystal), config=STILL)
    assert bound.energy == pytest.approx(-energy(crystal) / 2, abs=1e-10)  # a pair potential has no energy of atoms
    assert properties.energy_per_atom(POTENTIAL, PARAMS, *pair(crystal), STILL) == pytest.approx(energy(crystal) / 2)
    assert properties.atom_energy(POTENTIAL, PARAMS, "Cu") == 0
    with pytest.raises(ValueError, match="no reference energy of Au; given: Cu"):
        properties.formation_energy(POTENTIAL, PARAMS, *pair(crystal), {"Cu": 0.0})
    with pytest.raises(ValueError, match="'Xx', which is no chemical symbol"):
        properties.formation_energy(POTENTIAL, PARAMS, *pair(crystal), references | {"Xx": 0.0})


def test_vacancy_and_surface_energies_are_differences():
    crystal = crystals.fcc(1.86)
    vacancy, slab = crystals.vacancy(crystal), crystals.slab(1.86)
    defect = properties.vacancy_formation(POTENTIAL, PARAMS, pair(crystal), pair(vacancy), STILL)
    assert defect.energy == pytest.approx(energy(vacancy) - 7 * energy(crystal), abs=1e-10) and defect.energy > 0
    other = properties.vacancy_formation(POTENTIAL, PARAMS, pair(crystal), pair(vacancy), STILL, removed={"Cu": -2.0})
    assert other.energy == pytest.approx(energy(vacancy) - 8 * energy(crystal) - 2.0, abs=1e-10)
    area = np.linalg.norm(np.cross(*slab.cell.array[:2]))
    surface = properties.surface_energy(POTENTIAL, PARAMS, pair(crystal), pair(slab), STILL)
    assert surface.energy == pytest.approx((energy(slab) - 3 * energy(crystal)) / (2 * area), abs=1e-10)
    assert surface.energy > 0 and properties.JOULE_PER_M2 == pytest.approx(16.02177, rel=1e-6)


def test_what_does_not_fit_the_bulk_is_refused():
    crystal = crystals.fcc(1.86)
    other = crystals.vacancy(crystals.fcc(1.9))
    with pytest.raises(ValueError, match="does not fit the bulk"):
        properties.vacancy_formation(POTENTIAL, PARAMS, pair(crystal), pair(other))
    with pytest.raises(ValueError, match="lacks no atoms"):
        properties.vacancy_formation(POTENTIAL, PARAMS, pair(crystal), pair(crystal.repeat(2)))
    salt = ase.build.bulk("CuAu", "rocksalt", a=2.4)
    hole = salt.repeat(2)
    del hole[0]
    with pytest.raises(ValueError, match="elements Cu, Au: say in `removed`"):
        properties.vacancy_formation(POTENTIAL, PARAMS, pair(salt), pair(hole))
    with pytest.raises(ValueError, match="1 atoms of Cu were removed"):
        properties.vacancy_formation(POTENTIAL, PARAMS, pair(salt), pair(hole), removed={"Au": 0.0})
    with pytest.raises(ValueError, match="differ in composition"):
        properties.surface_energy(POTENTIAL, PARAMS, pair(salt), pair(hole))
