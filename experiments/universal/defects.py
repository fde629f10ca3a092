"""Hosts with point defects, for the teacher's set: supercells of crystals, single layers, slabs."""

from collections.abc import Sequence

import ase
import ase.build
import numpy as np
from ase.data import covalent_radii
from ase.geometry.dimensionality import analyze_dimensionality, isolate_components

LEAST, MOST = 12, 30  # atoms of a host
VACUUM = 7.0  # Å on either side of a layer: more than the model's cutoff between its images
NEAREST = 0.75  # of the sum of covalent radii, between an interstitial and the atoms there
MILLER = ((1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1))


def layers(starts: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """Single layers: those that crystals are stacked of, and the common kinds of two-dimensional crystals."""
    single = [
        ase.build.mx2("MoS2", "2H", 3.18, 3.19, vacuum=VACUUM),
        ase.build.mx2("WSe2", "2H", 3.32, 3.36, vacuum=VACUUM),
        ase.build.mx2("SnS2", "1T", 3.70, 2.95, vacuum=VACUUM),
        ase.build.graphene("BN", 2.51, vacuum=VACUUM),
        ase.build.graphene("C2", 2.47, vacuum=VACUUM),
        *map(_layer, (_phosphorene(), _gallium_selenide())),
    ]
    for atoms in starts:
        if analyze_dimensionality(atoms, method="RDA")[0].dimtype != "2D":
            continue
        parts = isolate_components(atoms).get("2D", ())
        single.extend(_layer(part) for part in parts if len(part) <= MOST)
    return single


def _layer(atoms: ase.Atoms) -> ase.Atoms:
    """A layer in the plane of the first two vectors, with vacuum."""
    atoms = atoms.copy()
    atoms.pbc = (True, True, False)
    atoms.center(VACUUM, axis=2)
    return atoms


def _phosphorene() -> ase.Atoms:
    places = [(0.0, 0.08, 0.0), (0.0, 0.92, 2.12), (0.5, 0.42, 2.12), (0.5, 0.58, 0.0)]
    cell = np.diag([3.30, 4.60, 20.0])
    return ase.Atoms("P4", [(x * 3.30, y * 4.60, z) for x, y, z in places], cell=cell, pbc=(True, True, False))


def _gallium_selenide() -> ase.Atoms:
    a = 3.82
    cell = [(a, 0, 0), (-a / 2, a * 3**0.5 / 2, 0), (0, 0, 20.0)]
    places = [(1 / 3, 2 / 3, 1.23), (1 / 3, 2 / 3, -1.23), (2 / 3, 1 / 3, 2.41), (2 / 3, 1 / 3, -2.41)]
    flat = np.array([np.array(cell[0]) * u + np.array(cell[1]) * v + (0, 0, z) for u, v, z in places])
    return ase.Atoms("Ga2Se2", flat, cell=cell, pbc=(True, True, False))


def host(bulk: ase.Atoms, single: Sequence[ase.Atoms], rng: np.random.Generator) -> ase.Atoms:
    """A supercell of the crystal, a slab of it, or one of the layers, repeated where it is shortest."""
    draw = rng.random()
    if draw < 0.55:
        atoms = ase.Atoms(numbers=bulk.numbers, positions=bulk.positions, cell=bulk.cell, pbc=True)
    elif draw < 0.90 or len(bulk) > MOST // 2:
        atoms = single[int(rng.integers(7 if rng.random() < 0.5 else len(single)))].copy()
    else:
        miller = MILLER[int(rng.integers(len(MILLER)))]
        atoms = ase.build.surface(bulk, miller, layers=1 if len(bulk) > 5 else 3, vacuum=VACUUM)
        atoms = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    while len(atoms) < LEAST or (2 * len(atoms) <= MOST and rng.random() < 0.6):
        lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
        repeat = [1, 1, 1]
        repeat[int(np.argmin(lengths))] = 2
        atoms = atoms.repeat(repeat)
    return atoms


def with_defects(atoms: ase.Atoms, scale: np.ndarray, rng: np.random.Generator) -> ase.Atoms | None:
    """None to three atoms are missing, replaced, exchanged or added; None where no place for an atom is found."""
    if len(atoms) > 2 * MOST:
        return None
    atoms = atoms.copy()
    for _ in range(int(rng.choice(4, p=(0.15, 0.5, 0.25, 0.1)))):
        kind = rng.choice(["vacancy", "substitution", "exchange", "interstitial"], p=(0.4, 0.3, 0.15, 0.15))
        i = int(rng.integers(len(atoms)))
        numbers = atoms.numbers.copy()
        if kind == "vacancy":
            del atoms[i]
        elif kind == "substitution":
            others = np.unique(numbers) if rng.random() < 0.5 else scale
            numbers[i] = int(rng.choice(others))
            atoms.numbers = numbers
        elif kind == "exchange" and len(set(numbers.tolist())) > 1:
            j = int(rng.choice(np.flatnonzero(numbers != numbers[i])))
            numbers[[i, j]] = numbers[[j, i]]
            atoms.numbers = numbers
        elif kind == "interstitial":
            more = int(rng.choice(numbers) if rng.random() < 0.7 else rng.choice(scale))
            if not _add(atoms, more, rng):
                return None
    return atoms


def _add(atoms: ase.Atoms, number: int, rng: np.random.Generator) -> bool:
    """An atom at a random place that is not too near to others; False if none was found in 50 tries."""
    around = atoms.copy()
    around.pbc = True
    for _ in range(50):
        place = rng.random(3)
        if not atoms.pbc.all():  # in the layer, or on it
            heights = atoms.get_scaled_positions(wrap=False)[:, 2]
            place[2] = rng.uniform(heights.min() - 0.06, heights.max() + 0.06)
        trial = around + ase.Atoms(numbers=[number], positions=[place @ atoms.cell.array])
        distances = trial.get_distances(len(trial) - 1, range(len(trial) - 1), mic=True)
        if (distances > NEAREST * (covalent_radii[number] + covalent_radii[atoms.numbers])).all():
            atoms += ase.Atoms(numbers=[number], positions=[place @ atoms.cell.array])
            return True
    return False
