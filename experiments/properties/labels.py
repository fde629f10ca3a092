"""Volumes, moduli and force constants of octet compounds by a larger model, Nequix MP-1: labels to train on. And what
that model says of the benchmarks' crystals.

    python -m experiments.properties.labels nequix-mp-1.nqx

The labels lie in labels/, the benchmark in teacher.json.
"""

import json
from pathlib import Path

import ase.io
import jax
import numpy as np

import lamjax
from experiments import workflow
from experiments.properties import crystals
from experiments.properties.crystals import HERE
from experiments.properties.run import HEAT, LABEL_KEYS, LABELS, REPEATS, TARGETS, benchmarks, measured, with_volume
from lamjax import checkpoints, neighbors, properties, relaxation
from lamjax.properties import supercells, vibrations
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.reports import console

UNKNOWN = 20.0
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
    """The crystals that the teacher relaxes to stable ones, with their properties and force constants."""
    relaxed = minima(teacher, crystals.candidates())
    console.print(f"{len(relaxed)} of {len(crystals.candidates())} crystals converged.")
    rows = [
        a | b for a, b in zip(*(values(teacher, relaxed, targets, work) for targets in (HEAT, TARGETS)), strict=True)
    ]
    stable = [k for k, row in enumerate(rows) if row["converged"] and row["stable"]]
    kept, rows = [relaxed[k] for k in stable], [rows[k] for k in stable]
    LABELS.parent.mkdir(exist_ok=True)
    for atoms, row, constants in zip(kept, rows, force_constants(teacher, kept), strict=True):
        atoms.info |= {key: row[key.removesuffix("_GPa")] for key in LABEL_KEYS}
        atoms.info |= {"force_constants": f"FORCE_CONSTANTS_{row['formula']}", "supercell": np.array(REPEATS)}
        write_force_constants(LABELS.parent / atoms.info["force_constants"], *constants)
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
    unknown = {target["name"]: UNKNOWN for target in targets}
    ase.io.write(file, [with_volume(with_info(atoms, unknown)) for atoms in relaxed])
    return measured(teacher, str(file), targets)["rows"]


def with_info(atoms, more: dict):
    """A copy with more in its info."""
    atoms = atoms.copy()
    atoms.info |= more
    return atoms


def force_constants(teacher, some: list):
    """Constants (eV/Å²) of each crystal, [n_atoms, n_super, 3, 3], and the atoms of the supercell that the rows are of.

    All crystals have two atoms: one program.
    """
    potential, params = teacher
    systems = [lamjax.from_ase(atoms) for atoms in some]
    cells = [supercells.tiled(system, np.array(REPEATS)) for system in systems]
    large = [supercells.repeated(system, of) for system, of in zip(systems, cells, strict=True)]
    counts = np.max([neighbors.count(system, potential.shells) for system in large], axis=0)
    capacity = neighbors.plan_capacities(tuple(int(n) for n in counts), potential.shells)
    along = vibrations.unit_displacements(cells[0], np.float64)
    program = jax.jit(lambda system, lists: vibrations.hessian_products(potential, params, system, lists, along))
    for system, of in zip(large, cells, strict=True):
        rows = program(system, neighbors.host_neighbors(system, potential.shells, capacity))
        rows = np.asarray(rows, np.float64).reshape(len(properties.supercells.home(of)), 3, -1, 3).swapaxes(1, 2)
        yield np.asarray(vibrations.with_sum_rule(rows, of)[0]), supercells.home(of)


def write_force_constants(path: Path, constants: np.ndarray, rows: np.ndarray) -> None:
    """A file FORCE_CONSTANTS as phonopy's compact ones."""
    lines = ["{} {}".format(*constants.shape[:2])]
    for row, of_row in zip(rows, constants, strict=True):
        for column, block in enumerate(of_row):
            lines += [f"{row + 1} {column + 1}", *(" ".join(f"{x:.6f}" for x in line) for line in block)]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
