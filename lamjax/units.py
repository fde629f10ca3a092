"""Units, Voigt order and the signs of stress and virial. Every conversion in lamjax goes through this file.

Inside lamjax: eV, Å, eV/Å, eV/Å³, amu, K. Stress is σ = (1/V) dE/dε (positive in tension, as in ASE);
virial is Ξ = -dE/dε = -σ V (eV, as in DeePMD-kit).
"""

import numpy as np
from ase import units as _ase
from jaxtyping import Array

GPA = _ase.GPa  # eV/Å³ in one GPa
KBAR = 0.1 * _ase.GPa
FS = _ase.fs  # Å sqrt(amu/eV) in one femtosecond
KB = _ase.kB  # eV/K

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy
_ROWS, _COLUMNS = (list(axis) for axis in zip(*VOIGT, strict=True))


def to_voigt(tensor: Array) -> Array:
    """The six Voigt components xx yy zz yz xz xy of a symmetric (..., 3, 3) tensor; no factors of two."""
    return tensor[..., _ROWS, _COLUMNS]


def from_voigt(voigt: Array) -> Array:
    """The symmetric (..., 3, 3) tensor of six Voigt components xx yy zz yz xz xy."""
    order = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    return voigt[..., order]


def virial_to_stress(virial: Array, volume: Array) -> Array:
    """σ = -Ξ/V: (..., 3, 3) virial in eV and volume in Å³ to stress in eV/Å³, positive in tension."""
    return -virial / volume


def stress_to_virial(stress: Array, volume: Array) -> Array:
    """Ξ = -σ V: (..., 3, 3) stress in eV/Å³ and volume in Å³ to virial in eV."""
    return -stress * volume
