"""New structures for the second teacher: crystals, defects, layers and simple crystals, most of them along relaxations.

    nice python -m experiments.universal.nequix_set --samples 400000 420000
    nice python -m experiments.universal.nequix_set --samples 500000 502000 --model nequix-mp-1.nqx

writes structures_FIRST.h5 (without labels) for every part of 10,000 samples; `nequix_labels` labels them. Two thirds
of the samples are relaxed by the model that is shipped: a state of the first steps and the end are kept, and the end
strained and displaced a little. These are the places that the model itself goes to, right or wrong. The others are
perturbed alone. A sample depends on its number and on that model; compositions of the evaluation sets are not made.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np

import lamjax
from experiments import workflow
from experiments.universal.starts import perturbed
from experiments.universal.teacher_set import SEED, Maker, enlarged, reasonable
from experiments.universal.train import WORK
from lamjax.data import Frame, from_atoms, write_store
from lamjax.relaxation import CellConfig, RelaxConfig, relax_structures

PART = 10_000  # samples in one file
MINIMA = 500_000  # the samples from here on are simple crystals, all relaxed, with more strained cells around the end
SOURCES = {"crystal": 0.42, "defects": 0.36, "simple": 0.22}
RELAXED = 0.67  # share of the samples
EARLY, LATE = 6, 40  # FIRE steps: until the first frame that is kept, and at most until the end
FMAX = 0.05  # eV/Å


class Start(NamedTuple):
    """A structure to relax, and how."""

    number: int
    atoms: ase.Atoms
    variable_cell: bool


class Structure(NamedTuple):
    """A structure to label."""

    number: int
    kind: str  # as in `pack.KINDS`
    atoms: ase.Atoms


def parent(maker: Maker, number: int, rng: np.random.Generator) -> tuple[ase.Atoms, bool]:
    """A structure of an admitted composition, and whether it has vacuum."""
    source = str(rng.choice(list(SOURCES), p=list(SOURCES.values()))) if number < MINIMA else "simple"
    if source == "crystal":
        return maker.parent(rng), False
    if source == "defects":
        atoms = maker.host(rng)
        vacuum = not atoms.pbc.all()
        atoms.pbc = True
        return atoms, vacuum
    atoms = maker.prototype(rng)
    while len(atoms) <= 4 and rng.random() < 0.5:
        atoms = enlarged(atoms, rng)
    return atoms, False


def begin(maker: Maker, number: int) -> tuple[list[Structure], list[Start]]:
    """The sample's perturbed structures, or the start of its relaxation."""
    rng = np.random.default_rng((SEED, number))
    atoms, vacuum = parent(maker, number, rng)
    if number >= MINIMA or rng.random() < RELAXED:
        volume = 1.0 if vacuum else rng.uniform(0.90, 1.15)
        start = perturbed(atoms, volume, rng.uniform(0, 0.04), rng.uniform(0.0, 0.15), rng)
        variable = not vacuum and (len(atoms) < 12 or rng.random() < 0.6)
        return [], [Start(number, start, bool(variable))] if reasonable(start) else []
    many = [
        perturbed(atoms, 1.0 if vacuum else rng.uniform(0.85, 1.22), rng.uniform(0, 0.05), rng.uniform(0.0, 0.25), rng)
        for _ in range(2)
    ]
    return [Structure(number, "perturbation", one) for one in many if reasonable(one)], []


def relaxed(potential, params, starts: list[Start], variable_cell: bool) -> list[Structure]:
    """An early state, the end, and one or two states near the end, of every relaxation."""
    chosen = [start for start in starts if start.variable_cell == variable_cell]
    cell = CellConfig() if variable_cell else None
    structures, atoms = [], [start.atoms for start in chosen]
    for steps in (EARLY, LATE):
        ends = relax_structures(potential, params, atoms, RelaxConfig(fmax=FMAX, max_steps=steps, cell=cell))
        atoms = [lamjax.to_ase(end.system) for end in ends]
        kind = "first steps" if steps == EARLY else "relaxation"
        structures += [Structure(start.number, kind, one) for start, one in zip(chosen, atoms, strict=True)]
    for start, end in zip(chosen, atoms, strict=True):
        structures += [Structure(start.number, "relaxation", one) for one in near(start, end)]
    return [one for one in structures if np.isfinite(one.atoms.positions).all() and reasonable(one.atoms)]


def near(start: Start, end: ase.Atoms) -> list[ase.Atoms]:
    """The end strained and displaced a little; around minima of simple crystals more, some with strains alone."""
    rng = np.random.default_rng((SEED, start.number, 1))
    many = 7 if start.number >= MINIMA else 2 if start.variable_cell else 1
    structures = []
    for _ in range(many):
        strain = float(rng.choice([0.0, 0.01, 0.02])) if start.variable_cell else 0.0
        volume = rng.uniform(0.96, 1.05) if start.variable_cell else 1.0
        structures.append(perturbed(end, volume, strain, float(rng.choice([0.0, 0.02, 0.05, 0.1])), rng))
    return structures


def frame(one: Structure) -> Frame:
    """The structure as a frame without labels."""
    info = {"sample": one.number, "kind": one.kind}
    return from_atoms(one.atoms, source=f"sample {one.number}")._replace(info=info)


def main(first: int, last: int, model: str, output: Path) -> None:
    """Write the parts that are not there yet."""
    warnings.simplefilter("ignore")  # of every relaxation that does not end within LATE steps
    maker = Maker(None)
    potential, params = lamjax.load(model)
    for number in range(first, last, PART):
        path = output / f"structures_{number}.h5"
        if path.exists():
            continue
        began, structures, starts = time.time(), [], []
        for sample in range(number, min(number + PART, last)):
            plain, relaxing = begin(maker, sample)
            structures += plain
            starts += relaxing
        print(f"{len(structures)} perturbed, {len(starts)} to relax, {time.time() - began:.0f} s", flush=True)
        for variable_cell in (True, False):
            structures += relaxed(potential, params, starts, variable_cell)
        write_store(path, [frame(one) for one in sorted(structures, key=lambda one: one.number)], np.float32)
        atoms = sum(len(one.atoms) for one in structures)
        print(f"{path}: {len(structures)} structures, {atoms} atoms, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=(400_000, 430_000), metavar=("FIRST", "LAST"))
    parser.add_argument("--model", default="small", help="relaxes the structures")
    parser.add_argument("--output", type=Path, default=WORK / "nequix")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    workflow.begin(options.output, options.output / "programs")
    main(*options.samples, options.model, options.output)
