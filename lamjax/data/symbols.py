"""Names of types in files of DeePMD-kit, and the chemical elements that they may stand for."""

import ase.data

ISOTOPES = {"D": "H", "T": "H"}
ISOTOPE_MASSES = {"D": 2.014, "T": 3.016}  # amu


def is_symbol(name: str) -> bool:
    """True for a chemical symbol."""
    return name in ase.data.atomic_numbers and name != "X"


def likely(name: str) -> str:
    """The element that a name begins with, to be shown, not taken: `OW` is O, `Na+` is Na."""
    return next((name[:n] for n in (2, 1) if is_symbol(name[:n])), "?")
