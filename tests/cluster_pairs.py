"""Relaxations of copper clusters for tests: a small DPA-1 that learned one Morse potential, and targets of another."""

from pathlib import Path

import ase
import ase.io
import jax
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

import lamjax
from lamjax import PotentialConfig, checkpoints, data, losses, training
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig

TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 8**0.5  # edges of length 1
LEARNED, TARGET = 2.6, 2.45  # Å, the nearest neighbours of what the base learned, and of where the pairs end
DEPTH, WIDTH = 0.8, 1.3  # eV, 1/Å


def labelled(positions: np.ndarray, distance: float) -> ase.Atoms:
    """Copper atoms with energy and forces of a Morse potential whose minimum is a tetrahedron of this edge."""
    atoms = ase.Atoms(f"Cu{len(positions)}", positions)
    d = positions[None] - positions[:, None] + 10 * np.eye(len(positions))[..., None]
    r = np.linalg.norm(d, axis=-1)
    decay = np.where(np.eye(len(r)), 0, np.exp(-WIDTH * (r - distance)))
    energy = DEPTH * np.sum(decay**2 - 2 * decay) / 2
    slope = 2 * DEPTH * WIDTH * (decay - decay**2)  # dE/dr
    forces = np.sum((slope / r)[..., None] * d, axis=1)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def write_labels(path: Path, n: int, seed: int = 0) -> None:
    """Rattled tetrahedra of many sizes with the labels that the base learned."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(2.2, 3.0, n)
    ase.io.write(path, [labelled(a * TETRAHEDRON + 0.15 * rng.normal(size=(4, 3)), LEARNED) for a in sizes])


def write_pairs(path: Path, n: int, seed: int = 1) -> None:
    """Trajectories of two steps: rattled tetrahedra, and a perfect one of the edge `TARGET`; of two families."""
    rng, frames = np.random.default_rng(seed), []
    for k in range(n):
        start = LEARNED * TETRAHEDRON + 0.1 * rng.normal(size=(4, 3))
        for step, positions in enumerate((start, TARGET * TETRAHEDRON)):
            frames.append(labelled(positions, TARGET))
            frames[-1].info |= {"relax_id": f"c{seed}-{k}", "family": f"f{k % 2}", "step": step, "n_steps": 2}
    ase.io.write(path, frames)


def write_base(path: Path, labels: Path, heads: tuple[str, ...] = ("Default",), steps: int = 300) -> None:
    """A DPA-1 fitted to labelled clusters: it holds them together, at the distances of its labels."""
    head = EnergyHeadConfig(neuron=(16, 16))
    descriptor = DPA1Config(rcut=5.0, rcut_smth=1.0, sel=4, neuron=(8, 16), axis_neuron=4, tebd_dim=2)
    potential = lamjax.build(PotentialConfig(("Cu",), descriptor, tuple((name, head) for name in heads)), heads[0])
    frames = data.read(labels)
    # all neighbours are about as far: of their narrow distribution no net is to be scaled by
    params = data.set_bias(potential, potential.init(jax.random.key(0)), frames)
    packed = data.pack(frames, data.plan(frames, potential.shells, 1))
    rate = training.schedule(training.ScheduleConfig("cosine", 1e-2, 1e-4), steps)
    optimizer = training.optimizer(training.OptimizerConfig(), rate)
    loss = losses.label_loss(potential, losses.LabelLossConfig("ener", 1.0, 1.0, 10.0, 10.0))
    batches = data.batches(packed, 8, seed=0, epochs=steps * 8 // len(frames))
    for state, _ in training.fit(loss, training.init(params, optimizer), optimizer, batches):  # noqa: B007
        pass
    checkpoints.save(path, lamjax.build(potential.config), state.params)  # of several heads none is chosen
