"""Electronic configurations of the elements, the input of the type embedding with `use_econf_tebd`."""

import ase.data
import numpy as np

N_SPIN_ORBITALS = 118
_LETTERS = "spdf"
# subshells (n, ell) in the order of the table's columns, and in the order in which they fill (Madelung's rule)
_COLUMNS = [(n, ell) for n in range(1, 8) for ell in range(min(n, 4)) if n + ell < 9]
_FILLING = sorted(_COLUMNS, key=lambda subshell: (sum(subshell), subshell[0]))
# ground states that do not follow the rule: what differs from it (NIST Atomic Spectra Database; Ds and Rg as Pt and Au)
_EXCEPTIONS = {
    **{symbol: {"4s": 1, "3d": d} for symbol, d in {"Cr": 5, "Cu": 10}.items()},
    **{symbol: {"5s": 1, "4d": d} for symbol, d in {"Nb": 4, "Mo": 5, "Ru": 7, "Rh": 8, "Ag": 10}.items()},
    "Pd": {"5s": 0, "4d": 10},
    **{symbol: {"4f": f, "5d": 1} for symbol, f in {"La": 0, "Ce": 1, "Gd": 7}.items()},
    **{symbol: {"6s": 1, "5d": d} for symbol, d in {"Pt": 9, "Au": 10}.items()},
    **{symbol: {"5f": f, "6d": 1} for symbol, f in {"Ac": 0, "Pa": 2, "U": 3, "Np": 4, "Cm": 7}.items()},
    "Th": {"5f": 0, "6d": 2},
    **{symbol: {"7s": 1, "6d": d} for symbol, d in {"Ds": 9, "Rg": 10}.items()},
}


def configuration(symbol: str) -> dict[str, int]:
    """Electrons in every occupied subshell of the neutral atom, for example {"1s": 2, "2s": 2, "2p": 4} for O."""
    left, occupied = ase.data.atomic_numbers[symbol], {}
    for n, ell in _FILLING:
        occupied[f"{n}{_LETTERS[ell]}"] = min(left, 2 * (2 * ell + 1))
        left -= occupied[f"{n}{_LETTERS[ell]}"]
    return {name: k for name, k in (occupied | _EXCEPTIONS.get(symbol, {})).items() if k}


def spin_orbitals(elements: tuple[str, ...]) -> np.ndarray:
    """(n_elements, 118): ±1/sqrt(118) for occupied and empty spin orbitals, subshells by n, then ell; Hund's rule.

    The two spins of an orbital are neighbours; the second is filled in every orbital of a subshell before the first.
    """
    rows = [np.concatenate([_occupation(configuration(e), n, ell) for n, ell in _COLUMNS]) for e in elements]
    return (2 * np.array(rows) - 1) / np.sqrt(N_SPIN_ORBITALS)


def _occupation(electrons: dict[str, int], n: int, ell: int) -> np.ndarray:
    count, orbitals = electrons.get(f"{n}{_LETTERS[ell]}", 0), np.arange(2 * ell + 1)
    return np.stack([orbitals < count - (2 * ell + 1), orbitals < count], axis=1).ravel().astype(float)
