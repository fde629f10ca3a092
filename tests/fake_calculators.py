"""Calculators that a user could import by name, each with a habit of its own; `made` counts instances."""

import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.emt import EMT

made: list[str] = []
NOT_A_FACTORY = 3.0


class Spring(Calculator):
    """E = k/2 sum of squared distances from the origin, as a free energy; `energy` is something else."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, k: float = 1.0):
        super().__init__()
        made.append("Spring")
        self.k = k

    def calculate(self, atoms, properties, changes):
        super().calculate(atoms, properties, changes)
        free = 0.5 * self.k * float(np.sum(atoms.positions**2))
        self.results = {"energy": np.float32(free + 7), "free_energy": free, "forces": -self.k * atoms.positions}
        self.results["stress"] = np.zeros(6)


class Troubled(Calculator):
    """What goes wrong is told by the structure's info `trouble`; after a crash the instance is of no use."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self):
        super().__init__()
        made.append("Troubled")
        self.broken = False

    def calculate(self, atoms, properties, changes):
        super().calculate(atoms, properties, changes)
        trouble = atoms.info.get("trouble", "")
        self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}
        if self.broken or trouble == "crash":
            self.broken = True
            raise RuntimeError("scf did not\nconverge, after\n  500 steps")
        if trouble == "exit":
            raise SystemExit(3)
        if trouble == "no stress":
            del self.results["stress"]
        elif trouble == "shape":
            self.results["forces"] = np.zeros((1, 3))
        elif trouble:
            self.results[trouble] = self.results[trouble] * np.nan


class Forgetful(Calculator):
    """Its answers depend on what it was asked before: no instance of it can be used twice."""

    implemented_properties = ["energy", "forces"]

    def __init__(self):
        super().__init__()
        made.append("Forgetful")
        self.n = 0

    def reset(self):
        super().reset()
        self.n += 1

    def calculate(self, atoms, properties, changes):
        super().calculate(atoms, properties, changes)
        self.results = {"energy": float(self.n), "forces": np.zeros((len(atoms), 3))}


class Plain:
    """No ASE base class: `get_*` methods alone, and no stress."""

    def get_potential_energy(self, atoms, force_consistent=False):
        return 2.0 if force_consistent else 1.0

    def get_forces(self, atoms):
        return np.ones((len(atoms), 3))

    def get_stress(self, atoms):
        raise PropertyNotImplementedError("no stress")


def emt(scale: float = 1.0) -> EMT:
    """A function that makes a calculator."""
    made.append("emt")
    return EMT()


def nothing():
    """Makes no calculator."""
    return 5
