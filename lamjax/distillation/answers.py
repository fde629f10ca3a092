"""Answers of labellers: a structure with energy, forces and maybe stress, or the reason of the failure."""

from typing import Any, NamedTuple

import ase
from ase.calculators.singlepoint import SinglePointCalculator


class Failed(NamedTuple):
    """A frame that has no label, and why."""

    reason: str


def labelled(atoms: ase.Atoms, **results: Any) -> ase.Atoms:
    """The structure with its info and these results."""
    atoms = bare(atoms)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """The structure and its info, without calculator and constraints: forces are those of the energy."""
    copy = atoms.copy()
    copy.calc = None
    copy.set_constraint()
    return copy
