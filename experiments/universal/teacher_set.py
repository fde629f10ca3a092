"""Make the teacher's set: crystals of 89 elements, changed at random, labelled and relaxed by CHGNet 0.3.0.

    pip install chgnet==0.4.2
    nice python -m experiments.universal.teacher_set --samples 0 1600
    nice python -m experiments.universal.teacher_set --samples 100000 104000   # many crystals, few frames of each
    nice python -m experiments.universal.teacher_set --samples 200000 210000   # point defects, layers and surfaces
    nice python -m experiments.universal.teacher_set --samples 300000 302000   # simple crystals of every element

Every sample comes from one crystal of experiments/data/materials_pbeu and the random numbers of (seed, sample) alone,
so that any range of samples can be made again, in any order. Blocks of samples are written one by one: a killed run
loses one block, and the same command goes on; what archive.py has kept is not made again. No composition of the
evaluation sets (`held_out.json`) is made.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ase
import ase.build
import ase.io
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols, covalent_radii
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from experiments.universal import archive, defects, prototypes
from experiments.universal.starts import perturbed

HERE = Path(__file__).parent
STARTS = HERE.parent / "data" / "materials_pbeu" / "train.extxyz.gz"
HELD_OUT = HERE / "held_out.json"  # reduced formulas of the evaluation sets
SEED = 20261129
BLOCK = 50  # samples in one file
MOST_ATOMS = 24
KINDS = {"relaxation": 0.40, "first steps": 0.20, "perturbation": 0.30, "hot": 0.10}  # share of the samples
BROAD = 100_000  # the samples from here on are many crystals with few frames each
BROAD_KINDS = {"relaxation": 0.02, "first steps": 0.30, "perturbation": 0.65, "hot": 0.03}
DEFECTS = 200_000  # the samples from here on are those of `experiments.universal.defects`
DEFECT_KINDS = {"relaxation": 0.35, "first steps": 0.40, "perturbation": 0.20, "hot": 0.05}
SIMPLE = 300_000  # the samples from here on are those of `experiments.universal.prototypes`
MOST_FORCE = 15.0  # eV/Å; frames above are left out
MOST_VIRIAL = 30.0  # eV/atom, any component; likewise
LEAST_DISTANCE = 0.55  # of the sum of covalent radii
MOST_NEIGHBORS = 40  # of an atom, within `NEAR`: the teacher's lists of angles grow with the square
NEAR = 3.2  # Å
ISOLATED = 5.0  # Å without any neighbour: atoms that no model of this cutoff can tell apart from free ones
APART = 0.03  # Å that an atom has moved, or a tenth as strain, between two frames that are kept


class Sample(NamedTuple):
    """Labelled frames of one sample."""

    kind: str
    frames: list[ase.Atoms]  # info: energy (eV), stress (eV/Å³, ASE's sign, 3x3); arrays: forces (eV/Å)


def elements_of(starts: list[ase.Atoms]) -> np.ndarray:
    """Atomic numbers that occur, in the order of the Pettifor scale: neighbours in it replace one another."""
    from pymatgen.core import Element

    numbers = sorted({int(z) for atoms in starts for z in atoms.numbers})
    return np.array(sorted(numbers, key=lambda z: Element(chemical_symbols[z]).mendeleev_no))


def substituted(atoms: ase.Atoms, scale: np.ndarray, rng: np.random.Generator) -> ase.Atoms:
    """Species replaced by others near in the Pettifor scale, the volume by the cubes of their covalent radii."""
    atoms = atoms.copy()
    species = np.unique(atoms.numbers)
    chosen = rng.random(len(species)) < 0.6
    chosen[rng.integers(len(species))] = True
    new, taken = atoms.numbers.copy(), set(species[~chosen].tolist())
    for z in species[chosen]:
        distance = np.abs(np.arange(len(scale)) - int(np.flatnonzero(scale == z)[0]))
        weight = np.exp(-distance / 6.0) * [other not in taken for other in scale.tolist()]
        weight[scale == z] = 0
        other = int(rng.choice(scale, p=weight / weight.sum()))
        taken.add(other)
        new[atoms.numbers == z] = other
    ratio = (covalent_radii[new] ** 3).sum() / (covalent_radii[atoms.numbers] ** 3).sum()
    atoms.numbers = new
    atoms.set_cell(atoms.cell * ratio ** (1 / 3), scale_atoms=True)
    return atoms


def enlarged(atoms: ase.Atoms, rng: np.random.Generator) -> ase.Atoms:
    """A small cell repeated along its shortest vectors, now and then, up to 16 atoms."""
    while len(atoms) <= 8 and rng.random() < 0.5:
        repeat = [1, 1, 1]
        repeat[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(repeat)
    return atoms


def defective(atoms: ase.Atoms, rng: np.random.Generator) -> ase.Atoms:
    """Now and then an atom is missing, or two have changed places."""
    atoms, draw = atoms.copy(), rng.random()
    if draw < 0.05 and len(atoms) >= 6:
        del atoms[int(rng.integers(len(atoms)))]
    elif draw < 0.10 and len(set(atoms.numbers.tolist())) > 1:
        numbers = atoms.numbers.copy()
        i = int(rng.integers(len(atoms)))
        j = int(rng.choice(np.flatnonzero(numbers != numbers[i])))
        numbers[[i, j]] = numbers[[j, i]]
        atoms.numbers = numbers
    return atoms


def reasonable(atoms: ase.Atoms) -> bool:
    """No two atoms are much nearer than bonds are, none has very many neighbours, and some have any."""
    i, j, d = neighbor_list("ijd", atoms, ISOLATED)
    radii = covalent_radii[atoms.numbers]
    near = bool((d <= LEAST_DISTANCE * (radii[i] + radii[j])).any())
    return len(d) > 0 and not near and np.bincount(i[d < NEAR], minlength=1).max() <= MOST_NEIGHBORS


def admitted(energy: float, forces: np.ndarray, virial: np.ndarray) -> bool:
    """Whether labels (eV, eV/Å, eV) are finite and not too large to learn from."""
    largest = [energy, np.abs(forces).max(), np.abs(virial).max() / len(forces)]
    return bool(np.isfinite(largest).all() and largest[1] <= MOST_FORCE and largest[2] <= MOST_VIRIAL)


def labelled(atoms: ase.Atoms) -> ase.Atoms | None:
    """A copy with what its calculator says; None where that is not finite or too large to learn from."""
    forces, energy = atoms.get_forces(), float(atoms.get_potential_energy())
    stress = atoms.get_stress(voigt=False)
    if not admitted(energy, forces, stress * atoms.get_volume()):
        return None
    frame = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    frame.info.update(energy=energy, stress=stress)
    frame.arrays["forces"] = forces
    return frame


def moved(one: ase.Atoms, other: ase.Atoms) -> bool:
    """Whether two frames of a trajectory are far enough apart to be worth a label each."""
    strain = np.abs(np.linalg.solve(one.cell.array, other.cell.array) - np.eye(3)).max()
    shift = other.get_scaled_positions(wrap=False) - one.get_scaled_positions(wrap=False)
    return bool(np.linalg.norm(shift @ other.cell.array, axis=1).max() > APART or strain > APART / 10)


class Kept:
    """Frames of a trajectory that are far enough apart."""

    def __init__(self, atoms: ase.Atoms):
        self.atoms, self.frames = atoms, []

    def __call__(self) -> None:
        if self.frames and not moved(self.frames[-1], self.atoms):
            return
        if not reasonable(self.atoms):
            raise Unreasonable
        frame = labelled(self.atoms)
        if frame is not None:
            self.frames.append(frame)


class Unreasonable(Exception):
    """Atoms have come too near to one another."""


def relaxed(atoms: ase.Atoms, calculator: Calculator, steps: int, variable_cell: bool) -> list[ase.Atoms]:
    """Frames of a relaxation, at most so many steps of FIRE."""
    atoms.calc = calculator
    kept = Kept(atoms)
    optimizer = FIRE(FrechetCellFilter(atoms) if variable_cell else atoms, logfile=None, dt=0.1, maxstep=0.15)
    optimizer.attach(kept)
    try:
        optimizer.run(fmax=0.02, steps=steps)
    except Unreasonable:
        pass
    return kept.frames


def simulated(atoms: ase.Atoms, calculator: Calculator, temperature: float, rng) -> list[ase.Atoms]:
    """Frames of a short simulation (Langevin, K)."""
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    kept = Kept(atoms)
    dynamics = Langevin(atoms, 2 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
    dynamics.attach(kept, interval=4)
    try:
        dynamics.run(24)
    except Unreasonable:
        pass
    return kept.frames


class Maker:
    """Samples by number."""

    def __init__(self, calculator: Calculator):
        starts = ase.io.read(STARTS, ":")
        self.scale = elements_of(starts)
        self.starts = [atoms for atoms in starts if len(atoms) <= MOST_ATOMS]
        self.excluded = set(json.loads(HELD_OUT.read_text())["formulas"])
        self.calculator = calculator
        # a crystal is drawn the more often, the rarer its rarest element
        count = np.bincount([z for atoms in self.starts for z in set(atoms.numbers.tolist())], minlength=119)
        weight = np.array([1 / min(count[z] for z in set(atoms.numbers.tolist())) ** 0.5 for atoms in self.starts])
        self.weight = weight / weight.sum()
        self.layers = defects.layers(self.starts)

    def host(self, rng: np.random.Generator) -> ase.Atoms:
        """A supercell, a layer or a slab with point defects; the host's composition may be learned, too."""
        for _ in range(100):
            bulk = self.starts[int(rng.choice(len(self.starts), p=self.weight))]
            atoms = defects.host(bulk, self.layers, rng)
            if rng.random() < 0.6:
                atoms = substituted(atoms, self.scale, rng)
            if reduced(atoms) in self.excluded:
                continue
            atoms = defects.with_defects(atoms, self.scale, rng)
            if atoms is not None and reduced(atoms) not in self.excluded:
                return atoms
        raise RuntimeError("No host of an admitted composition in 100 draws.")

    def parent(self, rng: np.random.Generator) -> ase.Atoms:
        """A crystal: one of the starts, mostly with other elements, of a composition that may be learned."""
        for _ in range(100):
            atoms = self.starts[int(rng.choice(len(self.starts), p=self.weight))]
            atoms = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
            if rng.random() < 0.75:
                atoms = substituted(atoms, self.scale, rng)
            atoms = defective(enlarged(atoms, rng), rng)
            if reduced(atoms) not in self.excluded:
                return atoms
        raise RuntimeError("No crystal of an admitted composition in 100 draws.")

    def sample(self, number: int) -> Sample:
        """The sample of that number; fewer frames, or none, where the structures come to nothing."""
        rng = np.random.default_rng((SEED, number))
        if number >= SIMPLE:
            return self.simple(rng)
        if number >= DEFECTS:
            return self.defective(rng)
        shares, most = (KINDS, 6) if number < BROAD else (BROAD_KINDS, 3)
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        parent = self.parent(rng)
        if kind == "perturbation":
            many = [
                perturbed(parent, rng.uniform(0.82, 1.25), rng.uniform(0, 0.05), rng.uniform(0.0, 0.25), rng)
                for _ in range(most)
            ]
            frames = []
            for atoms in filter(reasonable, many):
                atoms.calc = self.calculator
                frames.append(labelled(atoms))
            return Sample(kind, [frame for frame in frames if frame is not None])
        low = 0.65 if kind == "hot" else 0.88
        start = perturbed(parent, rng.uniform(low, 1.15), rng.uniform(0, 0.05), rng.uniform(0.0, 0.15), rng)
        if not reasonable(start):
            return Sample(kind, [])
        if kind == "hot":
            return Sample(kind, simulated(start, self.calculator, float(rng.uniform(300, 3000)), rng))
        steps = 45 if kind == "relaxation" else 9
        return Sample(kind, relaxed(start, self.calculator, steps, variable_cell=rng.random() < 0.85))

    def defective(self, rng: np.random.Generator) -> Sample:
        """Near the host's own volume, with the cell held in most relaxations: as defects are relaxed."""
        kind = str(rng.choice(list(DEFECT_KINDS), p=list(DEFECT_KINDS.values())))
        parent = self.host(rng)
        vacuum = not parent.pbc.all()
        parent.pbc = True
        strain, displacement = rng.uniform(0, 0.02), rng.uniform(0.0, 0.15)
        many = [
            perturbed(parent, 1.0 if vacuum else rng.uniform(0.90, 1.10), strain, displacement, rng)
            for _ in range(3 if kind == "perturbation" else 1)
        ]
        many = list(filter(reasonable, many))
        if kind != "perturbation" and many:
            (start,) = many
            if kind == "hot":
                return Sample(kind, simulated(start, self.calculator, float(rng.uniform(300, 1500)), rng))
            steps = 40 if kind == "relaxation" else 9
            variable = not vacuum and rng.random() < 0.3
            return Sample(kind, relaxed(start, self.calculator, steps, variable_cell=variable))
        for atoms in many:
            atoms.calc = self.calculator
        return Sample(kind, [frame for frame in map(labelled, many) if frame is not None])

    def prototype(self, rng: np.random.Generator) -> ase.Atoms:
        """A simple crystal of a composition that may be learned."""
        for _ in range(100):
            atoms = prototypes.crystal(self.scale, rng)
            if reduced(atoms) not in self.excluded:
                return atoms
        raise RuntimeError("No simple crystal of an admitted composition in 100 draws.")

    def simple(self, rng: np.random.Generator) -> Sample:
        """A simple crystal relaxed at variable cell (some frames), and cells strained, displaced, near its end."""
        parent = self.prototype(rng)
        frames: list[ase.Atoms] = []
        for _ in range(8):  # until the guess of the volume is one that the teacher takes
            start = perturbed(parent, rng.uniform(0.9, 1.3), 0.01, 0.01, rng)
            if reasonable(start):
                frames = relaxed(start, self.calculator, 60, variable_cell=True)
                break
        if not frames:
            return Sample("relaxation", [])
        end, frames = frames[-1], frames[::4]
        while len(end) <= 4 and rng.random() < 0.5:
            end = enlarged(end, rng)
        many = [
            perturbed(end, volume, rng.choice([0.0, 0.01, 0.03]), rng.choice([0.0, 0.05, 0.15]), rng)
            for volume in (0.8, 0.88, 0.94, 1.0, 1.06, 1.15, 1.3) * rng.uniform(0.97, 1.03, 7)
        ]
        many = list(filter(reasonable, many))
        for atoms in many:
            atoms.calc = self.calculator
        return Sample("relaxation", frames + [frame for frame in map(labelled, many) if frame is not None])


def reduced(atoms: ase.Atoms) -> str:
    """The reduced formula, elements in alphabetical order."""
    return atoms.symbols.formula.reduce()[0].format("hill")


def pack(samples: Iterator[tuple[int, Sample]]) -> dict[str, np.ndarray]:
    """Arrays of all frames behind one another."""
    kinds = list(KINDS)
    rows = [(number, kinds.index(one.kind), frame) for number, one in samples for frame in one.frames]
    frames = [frame for _, _, frame in rows]
    empty = np.zeros((0, 3))
    return {
        "sample": np.array([number for number, _, _ in rows], np.int32),
        "kind": np.array([kind for _, kind, _ in rows], np.uint8),
        "n_atoms": np.array([len(frame) for frame in frames], np.uint8),
        "numbers": np.concatenate([np.zeros(0, np.uint8), *(frame.numbers.astype(np.uint8) for frame in frames)]),
        "positions": np.concatenate([empty, *(frame.positions for frame in frames)]).astype(np.float32),
        "forces": np.concatenate([empty, *(frame.arrays["forces"] for frame in frames)]).astype(np.float32),
        "cell": np.array([frame.cell.array for frame in frames], np.float64).reshape(-1, 3, 3),
        "energy": np.array([frame.info["energy"] for frame in frames], np.float64),
        "stress": np.array([frame.info["stress"] for frame in frames], np.float32).reshape(-1, 3, 3),
    }


def main(first: int, last: int, output: Path) -> None:
    """Make the blocks of these samples that are not there yet."""
    import torch
    from chgnet.model.dynamics import CHGNetCalculator

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    maker = Maker(CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore"))
    output.mkdir(parents=True, exist_ok=True)
    archived = archive.read()
    for block in range(first // BLOCK, -(-last // BLOCK)):
        path = output / f"block_{block:05d}.npz"
        if block in archived or path.exists():
            continue
        began, made = time.time(), []
        for number in range(block * BLOCK, (block + 1) * BLOCK):
            try:
                made.append((number, maker.sample(number)))
            except Exception as error:  # a structure that the teacher cannot take costs its sample
                print(f"sample {number}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        arrays = pack(made)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(unfinished, **arrays)
        os.replace(unfinished, path)
        n = len(arrays["energy"])
        print(f"block {block}: {n} frames, {arrays['n_atoms'].sum()} atoms, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=(0, 12000), metavar=("FIRST", "LAST"))
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "build" / "universal" / "teacher_set")
    options = parser.parse_args()
    main(*options.samples, options.output)
