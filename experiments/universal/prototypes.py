"""Simple crystals for the teacher's set: every element in the structures of the elements, common binaries, ternaries.

What people try first, and what the other samples hold little of: small cells of high symmetry.
"""

import ase
import ase.build
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from pymatgen.core import Element

ANIONS = [atomic_numbers[x] for x in ("N", "P", "As", "Sb", "O", "S", "Se", "Te", "F", "Cl", "Br", "I", "C", "Si", "H")]
OXYGEN_LIKE = [atomic_numbers[x] for x in ("O", "F", "Cl", "Br", "S", "N")]
SHARES = {"element": 0.35, "ionic": 0.35, "metallic": 0.15, "ternary": 0.15}
ELEMENTAL = ("fcc", "bcc", "hcp", "diamond", "sc", "A7")
IONIC = ("rocksalt", "zincblende", "wurtzite", "cesiumchloride", "fluorite", "antifluorite", "nickeline", "rutile")
METALLIC = ("cesiumchloride", "L1_0", "L1_2", "zincblende")
TERNARY = ("perovskite", "half-heusler", "heusler")


def crystal(elements: np.ndarray, rng: np.random.Generator) -> ase.Atoms:
    """A crystal with the volume that the covalent radii suggest, in its primitive or conventional cell."""
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "element":
        atoms = _element(str(rng.choice(ELEMENTAL)), int(rng.choice(elements)))
    elif kind == "ionic":
        anion = int(rng.choice(ANIONS))
        most = _electronegativity(anion) + 0.2
        cation = int(rng.choice([z for z in elements if z != anion and _electronegativity(z) <= most]))
        atoms = _binary(str(rng.choice(IONIC)), cation, anion)
    elif kind == "metallic":
        first, second = rng.choice(elements, 2, replace=False)
        atoms = _binary(str(rng.choice(METALLIC)), int(first), int(second))
    else:
        a, b = (int(z) for z in rng.choice(elements, 2, replace=False))
        anion = [z for z in OXYGEN_LIKE if z not in (a, b)]
        atoms = _ternary(str(rng.choice(TERNARY)), a, b, int(rng.choice(anion)), rng)
    return atoms


def _electronegativity(z: int) -> float:
    value = Element.from_Z(int(z)).X
    return value if np.isfinite(value) else 1.2


def _scaled(atoms: ase.Atoms, first: int, second: int) -> ase.Atoms:
    """The cell scaled until the nearest two atoms of these kinds touch."""
    atoms = atoms.copy()
    atoms.pbc = True
    repeated = atoms.repeat(3)
    middle = [i for i in range(len(repeated)) if repeated.numbers[i] == first]
    others = np.flatnonzero(repeated.numbers == second)
    nearest = min(d for i in middle for d in repeated.get_distances(i, others[others != i], mic=True).tolist())
    atoms.set_cell(atoms.cell * (covalent_radii[first] + covalent_radii[second]) * 1.05 / nearest, scale_atoms=True)
    return atoms


def _element(kind: str, z: int) -> ase.Atoms:
    symbol = ase.data.chemical_symbols[z]
    if kind == "A7":  # arsenic, antimony, bismuth
        a, c, u = 3.76, 10.55, 0.227
        atoms = ase.Atoms([z] * 2, cell=[a, a, a], pbc=True)
        atoms.set_cell([(a / 2, a / 12**0.5, c / 3), (-a / 2, a / 12**0.5, c / 3), (0, -a / 3**0.5, c / 3)])
        atoms.set_scaled_positions([(u, u, u), (-u, -u, -u)])
    else:
        options = {"covera": 1.63} if kind == "hcp" else {}
        atoms = ase.build.bulk(symbol, kind, a=4.0, **options)
    return _scaled(atoms, z, z)


def _binary(kind: str, a: int, b: int) -> ase.Atoms:
    cubic = {
        "L1_2": [(a, (0, 0, 0)), (b, (0.5, 0.5, 0)), (b, (0.5, 0, 0.5)), (b, (0, 0.5, 0.5))],
        "cesiumchloride": [(a, (0, 0, 0)), (b, (0.5, 0.5, 0.5))],
    }
    primitive = {  # face-centred
        "rocksalt": [(a, (0, 0, 0)), (b, (0.5, 0.5, 0.5))],
        "zincblende": [(a, (0, 0, 0)), (b, (0.25, 0.25, 0.25))],
        "fluorite": [(a, (0, 0, 0)), (b, (0.25, 0.25, 0.25)), (b, (0.75, 0.75, 0.75))],
        "antifluorite": [(b, (0, 0, 0)), (a, (0.25, 0.25, 0.25)), (a, (0.75, 0.75, 0.75))],
    }
    hexagonal = {
        "wurtzite": [
            (a, (1 / 3, 2 / 3, 0)),
            (a, (2 / 3, 1 / 3, 0.5)),
            (b, (1 / 3, 2 / 3, 0.375)),
            (b, (2 / 3, 1 / 3, 0.875)),
        ],
        "nickeline": [(a, (0, 0, 0)), (a, (0, 0, 0.5)), (b, (1 / 3, 2 / 3, 0.25)), (b, (2 / 3, 1 / 3, 0.75))],
    }
    tetragonal = {
        "L1_0": ([(a, (0, 0, 0)), (b, (0.5, 0.5, 0.5))], 1.4),
        "rutile": (
            [(a, (0, 0, 0)), (a, (0.5, 0.5, 0.5))]
            + [(b, u) for u in ((0.305, 0.305, 0), (0.695, 0.695, 0), (0.195, 0.805, 0.5), (0.805, 0.195, 0.5))],
            0.65,
        ),
    }
    if kind in cubic:
        return _scaled(_placed(cubic[kind], np.eye(3)), a, b)
    if kind in primitive:
        return _scaled(_placed(primitive[kind], (np.ones((3, 3)) - np.eye(3)) / 2), a, b)
    if kind in hexagonal:
        ratio = 1.63 if kind == "wurtzite" else 1.4
        return _scaled(_placed(hexagonal[kind], [(1, 0, 0), (-0.5, 3**0.5 / 2, 0), (0, 0, ratio)]), a, b)
    sites, ratio = tetragonal[kind]
    return _scaled(_placed(sites, np.diag([1, 1, ratio])), a, b)


def _ternary(kind: str, a: int, b: int, anion: int, rng: np.random.Generator) -> ase.Atoms:
    if kind == "perovskite":
        small, large = sorted((a, b), key=lambda z: covalent_radii[z])
        edges = [(anion, site) for site in ((0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))]
        return _scaled(_placed([(large, (0, 0, 0)), (small, (0.5, 0.5, 0.5)), *edges], np.eye(3)), small, anion)
    third = int(
        rng.choice(
            [
                atomic_numbers[x]
                for x in ("Al", "Si", "Ga", "Ge", "In", "Sn", "Sb", "Bi")
                if atomic_numbers[x] not in (a, b)
            ]
        )
    )
    sites = [(a, (0.25, 0.25, 0.25)), (b, (0, 0, 0)), (third, (0.5, 0.5, 0.5))]
    if kind == "heusler":
        sites.append((a, (0.75, 0.75, 0.75)))
    return _scaled(_placed(sites, (np.ones((3, 3)) - np.eye(3)) / 2), a, third)


def _placed(sites, cell) -> ase.Atoms:
    numbers, places = zip(*sites, strict=True)
    return ase.Atoms(numbers=numbers, scaled_positions=places, cell=4.0 * np.asarray(cell, float), pbc=True)
