"""What is distilled: real data, the model that learns it first, where students go, and what they are."""

from typing import Any, NamedTuple

import ase
import ase.build
import numpy as np

from experiments.workflow import HEAD
from lamjax import data
from lamjax.system import to_ase


class Case(NamedTuple):
    """A system: its data, its teacher, and the simulation in which teacher and students are compared."""

    level: str
    elements: tuple[str, ...]
    head: str  # of the small model; fine-tuned, it is the teacher
    steps: int  # of that
    learning_rate: float
    temperature: float  # K, of the comparison
    timestep: float  # fs, of all simulations
    md_steps: int
    explore: dict[str, Any]
    trust: dict[str, float]
    every: int  # of the training frames one is a start
    largest: float  # Å, of radial distribution functions


CASES = {
    "alloy": Case(
        "Mo-Ta, PBE, VASP: solid solutions, and molecular dynamics of Mo and Ta at 300 to 4000 K",
        ("Mo", "Ta"),
        "materials",
        5000,
        2e-3,
        1500.0,
        2.0,
        3000,
        {"temperatures": [300, 1500, 3000], "perturbed": 4, "displacement": 0.12, "strain": 0.03, "simulations": 16}
        | {"steps": 400, "every": 20},
        {"lower": 0.08, "upper": 1.0},
        14,
        6.2,
    ),
    "water": Case(
        "64 H2O, PBE0+TS: molecular dynamics of water and ice",
        ("O", "H"),
        "gfn2xtb",
        5000,
        2e-3,
        330.0,
        0.5,
        8000,
        {"temperatures": [280, 330, 420], "perturbed": 5, "displacement": 0.05, "strain": 0.01, "simulations": 8}
        | {"steps": 600, "every": 30},
        {"lower": 0.08, "upper": 1.0},
        32,
        6.1,
    ),
}
HEAD_NEURONS = (64, 64, 64)
STUDENTS: dict[str, dict[str, Any]] = {
    "DPA-1": {  # without attention, as in the DPA-2 paper; its radial net becomes a table
        "descriptor": {"type": "dpa1", "rcut": 5.0, "rcut_smth": 0.5, "sel": 100, "neuron": [16, 32, 64]}
        | {"axis_neuron": 8},
        "heads": [[HEAD, {"neuron": HEAD_NEURONS}]],
    },
    "smaller DPA-2": {
        "descriptor": {
            "type": "dpa2",
            "repinit": {"rcut": 5.0, "rcut_smth": 0.5, "nsel": 100, "neuron": [8, 16, 32], "axis_neuron": 4},
            "repformer": {"rcut": 3.5, "rcut_smth": 2.5, "nsel": 40, "nlayers": 1, "g1_dim": 32, "g2_dim": 8}
            | {"update_g1_has_attn": False, "update_g2_has_g1g1": False, "update_g2_has_attn": False}
            | {"update_style": "res_residual", "update_residual": 0.01},
        },
        "heads": [[HEAD, {"neuron": HEAD_NEURONS}]],
    },
}
STUDENT_LOSS = {"start_pref_e": 0.2, "limit_pref_e": 20.0, "start_pref_f": 100.0, "limit_pref_f": 60.0}
STUDENT_LOSS |= {"start_pref_v": 0.02, "limit_pref_v": 0.1}


class Effort(NamedTuple):
    """How much is done: as it is reported, or to see in seconds that it runs."""

    rounds: int
    members: int
    student_steps: int  # a round
    most: int  # labels a round
    fresh: int
    teacher_steps: int | None  # None: those of the case
    md_steps: int | None
    starts: int | None


FULL = Effort(4, 3, 1500, 120, 16, None, None, None)
QUICK = Effort(2, 2, 2, 4, 2, 2, 4, 1)


def md_start(case: str, test: str) -> ase.Atoms:
    """Where the simulation that is compared begins: a random Mo-Ta of 128 atoms, or the first test frame of water."""
    if case == "water":
        return to_ase(data.read(test)[0].system)
    atoms = ase.build.bulk("Mo", cubic=True, a=3.24).repeat(4)  # the mean of Mo (3.16 Å) and Ta (3.32 Å) in PBE
    symbols = np.array(["Mo", "Ta"] * (len(atoms) // 2))
    atoms.symbols = np.random.default_rng(0).permutation(symbols)
    return atoms
