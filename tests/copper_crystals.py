"""Copper crystals for tests of fine-tuning on properties: a small DPA-1 that learned EMT, other targets."""

from pathlib import Path

import ase
import ase.build
import ase.io
import jax
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import lamjax
from lamjax import PotentialConfig, checkpoints, data, losses, training
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig

LATTICES = {"fcc": 3.6, "bcc": 2.87, "sc": 2.4}  # Å, near the minima of EMT
VOLUME = 10.5  # Å³ of an atom, the target; the base has about 11.1


def crystal(kind: str, scale: float = 1.0, rng: np.random.Generator | None = None) -> ase.Atoms:
    """A primitive cell of one atom, scaled and, with a generator, strained."""
    atoms = ase.build.bulk("Cu", kind, a=scale * LATTICES[kind])
    if rng is not None:
        strain = 0.01 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
    return atoms


def write_labels(path: Path, n: int = 32, seed: int = 0) -> None:
    """Strained fcc cells with energy, forces and stress of EMT."""
    rng, frames = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = crystal("fcc", rng.uniform(0.92, 1.1), rng)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "stress": atoms.get_stress(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    ase.io.write(path, frames)


def write_base(path: Path, labels: Path, steps: int = 400) -> None:
    """A DPA-1 fitted to the labels: fcc copper is a minimum of it."""
    descriptor = DPA1Config(rcut=4.0, rcut_smth=1.0, sel=60, neuron=(4, 8), axis_neuron=2, tebd_dim=2)
    config = PotentialConfig(("Cu",), descriptor, (("Default", EnergyHeadConfig(neuron=(8, 8))),))
    potential, frames = lamjax.build(config, "Default"), data.read(labels)
    params = data.set_bias(potential, potential.init(jax.random.key(0)), frames)
    packed = data.pack(frames, data.plan(frames, potential.shells, 1))
    optimizer = training.optimizer(
        training.OptimizerConfig(), training.schedule(training.ScheduleConfig("cosine", 2e-2, 1e-4), steps)
    )
    loss = losses.label_loss(potential, losses.LabelLossConfig("ener", 1.0, 1.0, 1.0, 1.0, 3.0, 3.0))
    batches = data.batches(packed, 8, seed=0, epochs=steps * 8 // len(frames))
    for state, _ in training.fit(loss, training.init(params, optimizer), optimizer, batches):  # noqa: B007
        pass
    checkpoints.save(path, lamjax.build(potential.config), state.params)


def write_crystals(path: Path, n: int = 5, seed: int = 1) -> None:
    """Strained cells whose volume shall be `VOLUME`, all but one with force constants; and a molecule."""
    rng = np.random.default_rng(seed)
    frames = [crystal("fcc", 1 + 0.01 * rng.normal(), rng) for _ in range(n)]
    for number, atoms in enumerate(frames):
        atoms.info |= {"volume_per_atom": VOLUME, "name": f"c{number}", "family": f"f{number % 2}"}
    write_force_constants(path.parent / "FORCE_CONSTANTS", 8)
    for atoms in frames[:-1]:
        atoms.info |= {"force_constants": "FORCE_CONSTANTS", "supercell": [2, 2, 2]}
    molecule = ase.Atoms("Cu2", [(0, 0, 0), (2.2, 0, 0)], info={"volume_per_atom": 10.0})
    ase.io.write(path, [*frames, molecule])


def write_force_constants(path: Path, n: int, stiffness: float = 8.0) -> None:
    """The first row of those of `n` atoms that are all tied to one another by equal springs, as phonopy writes it."""
    lines = [f"{1:4d} {n:4d}"]
    for j in range(n):
        block = stiffness * (np.eye(3) if j == 0 else -np.eye(3) / (n - 1))
        lines += [f"1 {j + 1}", *(" ".join(f"{x:22.15f}" for x in row) for row in block)]
    path.write_text("\n".join(lines) + "\n")
