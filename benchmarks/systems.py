"""The structures of `inference.py`, and models that know their elements. Fixed seeds: the same on every machine."""

from pathlib import Path

import ase
import ase.build
import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from common import PRESETS, Frames

import lamjax
from lamjax import checkpoints, edit, potential
from lamjax.descriptors import DPA3Config, RepflowConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.deepmd.write import dp_bytes

SYSTEMS = {
    "water": "192 atoms of water, periodic",
    "oxide": "63 atoms, MgO with an O vacancy, periodic",
    "molecule": "20 atoms, pyridine and ethanol, not periodic",
    "crystals": "a batch of 32 crystals of 4 atoms, periodic",
}
DPA3 = {"dpa3-l3": 3, "dpa3-l6": 6}  # layers
LIKE = {"C": "O", "N": "O", "Mg": "H", "Si": "H", "Al": "H", "Na": "H", "Cl": "O"}  # whom a new element behaves like
CRYSTALS = (  # four atoms each, so that every backend can take them as one batch
    ("MgO", {"crystalstructure": "rocksalt", "a": 4.21, "orthorhombic": True}),
    ("NaCl", {"crystalstructure": "rocksalt", "a": 5.64, "orthorhombic": True}),
    ("NaH", {"crystalstructure": "rocksalt", "a": 4.88, "orthorhombic": True}),
    ("SiC", {"crystalstructure": "zincblende", "a": 4.36, "orthorhombic": True}),
    ("AlN", {"crystalstructure": "zincblende", "a": 4.38, "orthorhombic": True}),
    ("AlN", {"crystalstructure": "wurtzite", "a": 3.11, "c": 4.98}),
    ("Si", {"crystalstructure": "diamond", "a": 5.43, "orthorhombic": True}),
    ("Al", {"crystalstructure": "fcc", "a": 4.05, "cubic": True}),
)


def prepare(system: str, model: str, folder: Path) -> tuple[Path, Path]:
    """The model file (`.dp`) of a model and the frames (`.npz`) of a system with their float64 reference."""
    original = dpa3(model, folder) if model in DPA3 else PRESETS / f"dpa2_{model}_f32.dp"
    if system == "water" and model in DPA3:
        weights, frames = original, evaluated([water_atoms()], original)
    elif system == "water":
        weights, frames = original, water(model)
    else:
        weights = extended(original, folder / f"{model}.dp")
        frames = evaluated(structures(system), weights)
    path = folder / f"{model}_{system}.npz"
    frames.write(path)
    return weights, path


def dpa3(model: str, folder: Path) -> Path:
    """A DPA-3 of the options and widths of DeePMD-kit's example, with random weights, written once; float32."""
    path = folder / f"{model}_original.dp"
    if not path.exists():
        repflow = RepflowConfig(
            n_dim=128, e_dim=64, a_dim=32, nlayers=DPA3[model], e_rcut=6.0, e_rcut_smth=5.3, e_sel=120, a_rcut=4.0,
            a_rcut_smth=3.5, a_sel=30, a_compress_rate=1, a_compress_e_rate=2, a_compress_use_split=True,
            smooth_edge_update=True, edge_init_use_dist=True, use_exp_switch=True,
        )  # fmt: skip
        head = EnergyHeadConfig(neuron=(240, 240, 240), activation_function="silut:10.0")
        descriptor = DPA3Config(repflow=repflow, activation_function="silut:10.0")
        config = potential.PotentialConfig(("H", "O"), descriptor, (("Default", head),))
        params = potential.build(config).init(jax.random.key(0), jnp.float32)
        path.write_bytes(dp_bytes(config, jax.tree.map(np.asarray, params), "Default"))
    return path


def water_atoms() -> ase.Atoms:
    """The stored frame of water."""
    frame = water("small")
    return ase.Atoms(numbers=frame.numbers[0], positions=frame.positions[0], cell=frame.cell[0], pbc=True)


def structures(system: str) -> list[ase.Atoms]:
    """The frames of a generated system, all with the same number of atoms."""
    return {"oxide": oxide, "molecule": molecule, "crystals": crystals}[system]()


def oxide() -> list[ase.Atoms]:
    """MgO, eight conventional cells less one O, displaced by 0.05 Å."""
    atoms = ase.build.bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2)
    del atoms[atoms.symbols.search("O")[0]]
    atoms.rattle(0.05, seed=1)
    return [atoms]


def molecule() -> list[ase.Atoms]:
    """Ethanol 3.5 Å above the plane of pyridine, displaced by 0.05 Å."""
    atoms, above = ase.build.molecule("C5H5N"), ase.build.molecule("CH3CH2OH")
    atoms.positions -= atoms.get_center_of_mass()
    above.positions -= above.get_center_of_mass()
    plane = np.linalg.svd(atoms.positions)[2][2]  # normal of the ring
    above.positions += plane * (3.5 - (above.positions @ plane).min())
    atoms += above
    atoms.rattle(0.05, seed=2)
    return [atoms]


def crystals() -> list[ase.Atoms]:
    """32 crystals of eight kinds, displaced by 0.05 Å and strained by up to 3 %."""
    chosen = []
    for seed in range(32):
        name, lattice = CRYSTALS[seed % len(CRYSTALS)]
        atoms = ase.build.bulk(name, **lattice)
        strain = np.random.default_rng(seed).uniform(-0.03, 0.03, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.rattle(0.05, seed=seed)
        chosen.append(atoms)
    return chosen


def water(model: str) -> Frames:
    """The stored frame with DeePMD-kit's own float64 energy, forces and virial."""
    stored = np.load(PRESETS / f"dpa2_{model}_reference.npz")
    data = {key.removeprefix("water192__"): value[None] for key, value in stored.items() if key != "frames"}
    numbers = np.array([[ase.data.atomic_numbers[s] for s in data["species"][0]]])
    others = ("energy", "forces", "virial")
    return Frames(data["positions"], data["cell"], True, numbers, data["atype"], *(data[name] for name in others))


def extended(original: Path, path: Path) -> Path:
    """The preset with further elements, written once; DeePMD-kit opens it as it opens the original."""
    if not path.exists():
        stored = checkpoints.read(original)
        model = edit.extend_elements(potential.build(stored.config), stored.params, list(LIKE), like=LIKE)
        config, params = model[0].config, jax.tree.map(np.asarray, model[1])
        path.write_bytes(dp_bytes(config, params, config.head_names[0]))
    return path


def evaluated(atoms: list[ase.Atoms], weights: Path) -> Frames:
    """The frames with energy, forces and virial of lamjax in float64."""
    with jax.enable_x64(True):
        model, params = lamjax.load(weights, dtype=jnp.float64)
        predict = jax.jit(lambda system, lists: lamjax.predict(model, params, system, lists))
        systems = [lamjax.from_ase(a) for a in atoms]
        width = max(lamjax.allocate(model, s).capacities[0] for s in systems)
        rows = [jax.device_get(predict(s, lamjax.allocate(model, s, width))) for s in systems]
    order = model.elements
    return Frames(
        positions=np.stack([a.positions for a in atoms]),
        cell=np.stack([a.cell.array for a in atoms]),
        periodic=bool(atoms[0].pbc.all()),
        numbers=np.stack([a.numbers for a in atoms]),
        types=np.array([[order.index(s) for s in a.symbols] for a in atoms]),
        energy=np.stack([r.energy for r in rows]),
        forces=np.stack([r.forces for r in rows]),
        virial=np.stack([r.virial for r in rows]),
    )
