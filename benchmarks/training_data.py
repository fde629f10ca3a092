"""The data sets of `training.py` as DeePMD npy folders that all codes read, and the training input made for them.

Speed depends on sizes and neighbours, not on labels: energies and forces are those of soft spheres. Fixed seeds.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from common import PRESETS, ROOT

CASES = {
    "a": "six systems of 8, 12, 16, 20, 24 and 28 atoms",
    "b": "water, 192 atoms",
    "c": "1,000 crystals of 1 to 200 atoms",
}
CRYSTALS = ROOT.parent / "experiments" / "data" / "pbe_main_group" / "train.extxyz.gz"
SIZES = (8, 12, 16, 20, 24, 28)
ELEMENTARY = ("Al", "Li", "Mo", "Ca", "K", "Na")  # one atom in a primitive cell
BATCH_ATOMS = 32  # `batch_size: auto`
HEIGHT, CUTOFF = 3.0, 5.0  # of the soft spheres: eV, Å


def write(case: str, folder: Path) -> dict[str, tuple[int, int]]:
    """The systems of a case as folders below `folder`: {name: (atoms, frames)}."""
    if case == "c":
        groups = defaultdict(list)
        for atoms in mixture():
            groups[len(atoms)].append(atoms)
        systems = {f"{n:03d}_atoms": frames for n, frames in sorted(groups.items())}
    else:
        systems = {"water": water()} if case == "b" else small()
    elements = sorted({symbol for frames in systems.values() for atoms in frames for symbol in atoms.symbols})
    for name, frames in systems.items():
        write_system(folder / name, frames, elements, mixed=case == "c")
    return {name: (len(frames[0]), len(frames)) for name, frames in systems.items()}


def small() -> dict[str, list[ase.Atoms]]:
    """Twenty displaced copies each of six crystals with two or more elements."""
    crystals = ase.io.read(CRYSTALS, ":")
    first = [next(a for a in crystals if len(a) == n and len(set(a.numbers)) > 1) for n in SIZES]
    return {f"{len(a):03d}_atoms": displaced(a, 20) for a in first}


def water() -> list[ase.Atoms]:
    """Forty displaced copies of the preset's frame of 64 molecules."""
    stored = np.load(PRESETS / "dpa2_small_reference.npz")
    data = {name: stored[f"water192__{name}"] for name in ("species", "positions", "cell")}
    return displaced(ase.Atoms(list(data["species"]), data["positions"], cell=data["cell"], pbc=True), 40)


def mixture(n_crystals: int = 1000, largest: int = 200) -> list[ase.Atoms]:
    """Real crystals, repeated to sizes that spread evenly in their logarithm, displaced by 0.05 Å, strained by 3 %."""
    rng = np.random.default_rng(0)
    sources = ase.io.read(CRYSTALS, ":") + [ase.build.bulk(symbol) for symbol in ELEMENTARY]
    by_size = defaultdict(list)
    for atoms in sources:
        by_size[len(atoms)].append(atoms)
    crystals = []
    for wanted in np.exp(rng.uniform(0, np.log(largest + 1), n_crystals)).astype(int):
        sizes = [n for n in by_size if n <= wanted]
        n = sizes[rng.integers(len(sizes))]
        atoms = repeated(by_size[n][rng.integers(len(by_size[n]))], int(wanted))
        strain = rng.uniform(-0.03, 0.03, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, (len(atoms), 3))
        crystals.append(atoms)
    return crystals


def repeated(atoms: ase.Atoms, most: int) -> ase.Atoms:
    """As many cells as `most` atoms allow, added along the shortest edge each time."""
    result = bare(atoms)
    while True:
        shortest = int(np.argmin(result.cell.lengths()))
        longer = [1, 1, 1]
        longer[shortest] = 2
        if 2 * len(result) > most:
            return result
        result = result.repeat(longer)


def displaced(atoms: ase.Atoms, n: int) -> list[ase.Atoms]:
    """Copies with Gaussian displacements of 0.05 Å."""
    copies = [bare(atoms) for _ in range(n)]
    for seed, copy in enumerate(copies):
        copy.rattle(0.05, seed=seed)
    return copies


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """The structure without labels or constraints."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def labels(atoms: ase.Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of Σ_pairs h exp(-(r/r0)²), r0 the sum of covalent radii: bounded however close."""
    i, j, d, vector = neighbor_list("ijdD", atoms, CUTOFF)
    r0 = covalent_radii[atoms.numbers][i] + covalent_radii[atoms.numbers][j]
    pair = HEIGHT * np.exp(-((d / r0) ** 2))
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, (-2 * pair / r0**2)[:, None] * vector)
    return 0.5 * float(np.sum(pair)), forces


def write_system(folder: Path, frames: Sequence[ase.Atoms], elements: Sequence[str], mixed: bool) -> None:
    """Frames with equal numbers of atoms; `mixed`: of any elements, else all of the same ones."""
    part = folder / "set.000"
    part.mkdir(parents=True)
    types = np.array([[elements.index(symbol) for symbol in atoms.symbols] for atoms in frames])
    labelled = [labels(atoms) for atoms in frames]
    arrays = {
        "coord": [atoms.positions.ravel() for atoms in frames],
        "box": [atoms.cell.array.ravel() for atoms in frames],
        "energy": [energy for energy, _ in labelled],
        "force": [forces.ravel() for _, forces in labelled],
    }
    for name, rows in arrays.items():
        np.save(part / f"{name}.npy", np.array(rows))
    if mixed:
        np.save(part / "real_atom_types.npy", types.astype(np.int32))
    first = np.zeros_like(types[0]) if mixed else types[0]
    (folder / "type.raw").write_text("\n".join(map(str, first)) + "\n")
    (folder / "type_map.raw").write_text("\n".join(elements) + "\n")


def training_input(systems: Iterable[Path], steps: int, display: int) -> dict:
    """DeePMD-kit's training input of the DPA-2 small preset for these systems.

    Without what not all codes do: clipping of gradients (the jax backend has none), a statistics file, validation.
    """
    content = json.loads((PRESETS / "dpa2_small_config.json").read_text())
    systems = sorted(systems)
    content["model"]["type_map"] = (systems[0] / "type_map.raw").read_text().split()
    content["training"] = {
        "training_data": {"systems": [str(path.resolve()) for path in systems], "batch_size": "auto"},
        "numb_steps": steps,
        "seed": content["training"]["seed"],
        "disp_freq": display,
        "save_freq": steps,
    }
    return content


def structures_per_step(systems: dict[str, tuple[int, int]]) -> float:
    """Mean structures in a batch of DeePMD-kit, which draws systems by their number of batches."""
    batches = [math.ceil(frames / math.ceil(BATCH_ATOMS / atoms)) for atoms, frames in systems.values()]
    return sum(frames for _, frames in systems.values()) / sum(batches)
