"""Crystals of the experiment: those that are compared with DFT, and those that the teacher gives moduli of."""

from pathlib import Path

import ase
import ase.io
import numpy as np

DATA = Path(__file__).parents[1] / "data"
HERE = Path(__file__).parent
LABELS = HERE / "teacher_moduli.extxyz"  # by teacher.py
MOST = 5  # atoms of a crystal that is trained on
N_LABELLED = 72  # crystals for the teacher, of which about two thirds are stable: 30 to train on, others to choose by
N_BESIDE = 20  # of the benchmark for the teacher


def elastic(n: int | None = None) -> list[ase.Atoms]:
    """Crystals with DFT moduli: info bulk_modulus_GPa, shear_modulus_GPa. Evaluation only."""
    return ase.io.read(DATA / "bench_mp_elastic" / "relaxed.extxyz.gz", ":")[:n]


def phonon(n: int | None = None) -> list[ase.Atoms]:
    """Crystals with DFT heat capacities at 300 K: info heat_capacity_J_molK, of cells. Evaluation only."""
    return ase.io.read(DATA / "bench_alexandria_phonon" / "relaxed.extxyz.gz", ":")[:n]


def system_of(atoms: ase.Atoms) -> tuple[str, ...]:
    """The elements of a crystal: its chemistry."""
    return tuple(sorted(set(atoms.symbols)))


def candidates() -> list[ase.Atoms]:
    """Small crystals of two or three elements to train on, one of each chemistry, of none that the benchmarks have."""
    taken = {system_of(atoms) for atoms in [*elastic(), *phonon()]}
    by_chemistry: dict[tuple[str, ...], ase.Atoms] = {}
    for atoms in ase.io.read(DATA / "materials_pbeu" / "train.extxyz.gz", ":"):
        name = system_of(atoms)
        if len(name) in (2, 3) and len(atoms) <= MOST and atoms.pbc.all() and name not in taken:
            by_chemistry.setdefault(name, ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    names = sorted(by_chemistry)
    return [by_chemistry[names[k]] for k in np.random.default_rng(0).permutation(len(names))]
