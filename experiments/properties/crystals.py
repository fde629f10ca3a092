"""Crystals of the experiment: those that are compared with DFT, and those that the teacher gives labels of."""

import itertools
from pathlib import Path

import ase
import ase.build
import ase.io
from ase.data import atomic_numbers, covalent_radii
from ase.formula import Formula

DATA = Path(__file__).parents[1] / "data"
HERE = Path(__file__).parent
MOST = 4  # atoms of the crystals that are computed: one compiled program
# binary compounds with eight valence electrons for each pair of atoms
OCTET = (
    ("Li Na K Rb Cs Cu Ag Tl", "H F Cl Br I"),
    ("Be Mg Ca Sr Ba Zn Cd Hg", "O S Se Te"),
    ("B Al Ga In", "N P As Sb"),
)
TETRAHEDRAL = frozenset(
    "Be B Al Ga In Zn Cd Hg Cu".split()
)  # their compounds begin as zinc blende, others as rock salt


def elastic() -> list[ase.Atoms]:
    """Crystals with DFT moduli: info bulk_modulus_GPa, shear_modulus_GPa. Evaluation only."""
    return _small(ase.io.read(DATA / "bench_mp_elastic" / "relaxed.extxyz.gz", ":"))


def phonon() -> list[ase.Atoms]:
    """Crystals with DFT heat capacities at 300 K: info heat_capacity_J_molK, of cells. Evaluation only."""
    return _small(ase.io.read(DATA / "bench_alexandria_phonon" / "relaxed.extxyz.gz", ":"))


def _small(crystals: list[ase.Atoms]) -> list[ase.Atoms]:
    return [atoms for atoms in crystals if len(atoms) <= MOST]


def is_octet(formula: str) -> bool:
    """Whether a crystal of this formula has the elements of such a compound."""
    return frozenset(Formula(formula).count()) in {frozenset(pair) for pair in octet()}


def octet() -> list[tuple[str, str]]:
    """Cation and anion of the compounds that the fine-tuning is about."""
    return [pair for cations, anions in OCTET for pair in itertools.product(cations.split(), anions.split())]


def candidates() -> list[ase.Atoms]:
    """A crystal of each of these chemistries that neither benchmark has, as large as covalent radii say."""
    taken = {frozenset(atoms.symbols) for atoms in [*elastic(), *phonon()]}
    return [_binary(*pair) for pair in octet() if frozenset(pair) not in taken]


def _binary(cation: str, anion: str) -> ase.Atoms:
    bond = sum(covalent_radii[atomic_numbers[symbol]] for symbol in (cation, anion))
    if cation in TETRAHEDRAL:
        return ase.build.bulk(cation + anion, "zincblende", a=4 * bond / 3**0.5)
    return ase.build.bulk(cation + anion, "rocksalt", a=2.1 * bond)
