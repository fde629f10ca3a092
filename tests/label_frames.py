"""Labelled frames for tests: from DeePMD's npy folders, and made up with a Morse potential."""

from pathlib import Path

import ase
import ase.build
import ase.data
import jax
import numpy as np

import lamjax
from lamjax import classical, neighbors
from lamjax.data import Frame
from lamjax.system import Labels, System, host_system

FIXTURES = Path(__file__).parents[0] / "fixtures" / "training"


def atomic_numbers(symbols) -> np.ndarray:
    """Atomic numbers of chemical symbols."""
    return np.array([ase.data.atomic_numbers[s] for s in symbols], np.int32)


def deepmd_frames(folder: Path) -> list[Frame]:
    """All frames of one DeePMD system, mixed type or not."""
    data = {path.stem: np.load(path) for path in sorted((folder / "set.000").glob("*.npy"))}
    symbols = (folder / "type_map.raw").read_text().split()
    types = data.get("real_atom_types", np.loadtxt(folder / "type.raw", int)[None])
    numbers = atomic_numbers(symbols)[types]
    n_frames = len(data["coord"])
    return [
        Frame(
            System(
                data["coord"][k].reshape(-1, 3),
                np.broadcast_to(numbers, (n_frames, numbers.shape[1]))[k],
                data["box"][k].reshape(3, 3),
                np.ones(3, bool),
            ),
            Labels(data["energy"][k], data["force"][k].reshape(-1, 3), np.zeros((3, 3)), np.array([1.0, 1.0, 0.0])),
            f"{folder.name} frame {k}",
            ("energy", "force", ""),
            {},
        )
        for k in range(n_frames)
    ]


def reference_frames() -> list[Frame]:
    """The batch of three oxides of `loss_reference.npz`, fully labelled."""
    stored = dict(np.load(FIXTURES / "loss_reference.npz"))
    numbers = atomic_numbers(stored["type_map"])[stored["atype"]]
    return [
        Frame(
            System(stored["coord"][k], numbers[k], stored["box"][k].reshape(3, 3), np.ones(3, bool)),
            Labels(stored["label_energy"][k], stored["label_force"][k], stored["label_virial"][k], np.ones(3)),
            f"frame {k}",
            ("", "", ""),
            {},
        )
        for k in range(3)
    ]


MORSE = classical.morse(depth=1.0, width=1.2, distance=2.6, cutoff=4.0)


def copper_frames(n: int, sizes=(1, 2), seed: int = 0, labelled=(1.0, 1.0, 1.0)) -> list[Frame]:
    """Rattled copper cells of 4 and 8 atoms, with labels from a Morse potential."""
    rng = np.random.default_rng(seed)
    return [_copper(rng, sizes[k % len(sizes)], k, labelled) for k in range(n)]


def _copper(rng, size: int, k: int, labelled) -> Frame:
    atoms = ase.build.bulk("Cu", "fcc", a=3.6 + 0.1 * rng.normal(), cubic=True).repeat((size, 1, 1))
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    system = host_system(atoms)
    shape = (8, (40,))
    padded = lamjax.system.pad(system, shape[0])
    made = _predict(MORSE.init(), padded, neighbors.host_neighbors(padded, MORSE.shells, shape[1])._replace(
        offsets=np.zeros((0, 3), np.int32)))  # fmt: skip
    labels = Labels(np.asarray(made.energy), np.asarray(made.forces)[: len(atoms)], np.asarray(made.virial),
                    np.array(labelled, float))  # fmt: skip
    return Frame(system, labels, f"copper frame {k}", ("energy", "forces", "virial"), {})


@jax.jit
def _predict(params, system, found):
    return lamjax.predict(MORSE, params, system, found)
