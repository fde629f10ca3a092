"""Volumes, moduli and force constants of octet compounds by a larger model, Nequix MP-1: labels to train on. And what
that model says of the benchmarks' crystals.

    python -m experiments.properties.labels nequix-mp-1.nqx    # needs phonopy: pip install "lamjax[properties]"

The labels lie in labels/, the benchmark in teacher.json.
"""

import json
from pathlib import Path

import ase.io
import numpy as np

import lamjax
from experiments import workflow
from experiments.properties import crystals
from experiments.properties.crystals import HERE
from experiments.properties.run import (
    ELASTIC_KEYS,
    HEAT,
    HEAT_CAPACITY,
    LABELS,
    REPEATS,
    TARGETS,
    benchmarks,
    measured,
    with_volume,
)
from lamjax import checkpoints, properties, relaxation
from lamjax.properties import supercells, survey
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.reports import console

UNKNOWN = 20.0  # in the place of numbers that the teacher is asked for
FMAX = 2e-3  # eV/Å, of the labelled crystals


def main() -> None:
    parser = workflow.arguments(__doc__, HERE, seeds=())
    parser.add_argument("teacher", type=Path, help="the weights, nequix-mp-1.nqx")
    options = parser.parse_args()
    work = options.work / "properties" / "teacher"
    workflow.begin(options.work, options.cache)
    teacher = checkpoints.load(options.teacher, dtype=np.float32)
    if not LABELS.is_file():
        label(teacher, work)
    files = benchmarks(work)
    rows = {}
    for name, targets in {"elastic": TARGETS, "heat": HEAT}.items():
        workflow.once(work / f"{name}.json", lambda name=name, targets=targets: measured(teacher, files[name], targets))
        rows[name] = json.loads((work / f"{name}.json").read_text())["rows"]
        (HERE / "teacher.json").write_text(json.dumps(rows) + "\n")


def label(teacher, work: Path) -> None:
    """The crystals that the teacher relaxes to elastically stable ones, with their properties and force constants.

    A heat capacity is that of a crystal without imaginary frequencies: the others have none.
    """
    from phonopy.file_IO import write_FORCE_CONSTANTS

    relaxed = minima(teacher, crystals.candidates())
    console.print(f"{len(relaxed)} of {len(crystals.candidates())} crystals converged.")
    elastic, heat = (values(teacher, relaxed, targets, work) for targets in (TARGETS, HEAT))
    LABELS.parent.mkdir(exist_ok=True)
    kept = []
    for atoms, row, vibrating in zip(relaxed, elastic, heat, strict=True):
        if not (row["converged"] and row["stable"]):
            continue
        atoms.info |= {key: row[key.removesuffix("_GPa")] for key in ELASTIC_KEYS}
        if vibrating["converged"] and vibrating["stable"]:
            atoms.info[HEAT_CAPACITY] = vibrating[HEAT_CAPACITY]
        atoms.info |= {"force_constants": f"FORCE_CONSTANTS_{row['formula']}", "supercell": np.array(REPEATS)}
        system = lamjax.from_ase(atoms)
        cells = properties.supercell(teacher[0], system, REPEATS)
        constants, _ = survey.force_constants(*teacher, system, cells)
        file = LABELS.parent / atoms.info["force_constants"]
        write_FORCE_CONSTANTS(np.asarray(constants), filename=file, p2s_map=supercells.home(cells))
        kept.append(atoms)
    ase.io.write(LABELS, kept)
    console.print(f"{LABELS}: {len(kept)} crystals")


def minima(teacher, some: list) -> list:
    """The crystals that converge, relaxed with their cells."""
    how = RelaxConfig(fmax=FMAX, max_steps=500, cell=CellConfig())
    ends = relaxation.relax_structures(*teacher, some, how)
    relaxed = [lamjax.to_ase(one.system) for one in ends if bool(one.converged)]
    for atoms in relaxed:
        atoms.info = {"formula": atoms.get_chemical_formula()}
    return relaxed


def values(teacher, relaxed: list, targets: list, work: Path) -> list[dict]:
    """Properties of relaxed crystals. Their file must have numbers to compare with: nothing is made of these."""
    file = work / "relaxed.extxyz"
    file.parent.mkdir(parents=True, exist_ok=True)
    some = [atoms.copy() for atoms in relaxed]
    for atoms in some:
        atoms.info |= dict.fromkeys((target["name"] for target in targets), UNKNOWN)
    ase.io.write(file, [with_volume(atoms) for atoms in some])
    return measured(teacher, str(file), targets)["rows"]


if __name__ == "__main__":
    main()
