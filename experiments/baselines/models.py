"""The models that are compared: MACE of the mlip package, and NequIP, DPA-2 and DPA-3 of lamjax."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ase.data
import jax
import numpy as np

from experiments import workflow
from lamjax import Potential, PotentialConfig, checkpoints, data
from lamjax.descriptors import DPA3Config, NequIPConfig, RepflowConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.mlip import from_mlip
from lamjax.neighbors.host import pairs
from lamjax.training import OptimizerConfig

CUTOFF = 5.0  # Å, of all of them
MACE, NEQUIP, DPA2, DPA3 = NAMES = ("MACE", "NequIP", "DPA-2", "DPA-3")
TRUSTED = f"{__name__}:mace"  # makes the potential of MACE
NETWORKS: dict[str, dict[str, Any]] = {  # of MACE
    "full": {"num_channels": 8, "l_max": 2, "node_symmetry": 1, "correlation": 2, "radial_mlp_hidden": [32, 32]},
    "quick": {"num_channels": 4, "l_max": 1, "node_symmetry": 1, "correlation": 2, "radial_mlp_hidden": [8]},
}
RATES = {MACE: ("adam", 5e-3), NEQUIP: ("adam", 5e-3), DPA2: ("muon", 5e-3), DPA3: ("muon", 5e-3)}  # optimiser, rate


class Facts(NamedTuple):
    """What the models take from the training frames before they are trained."""

    elements: tuple[str, ...]
    energies: tuple[float, ...]  # eV, of each element, least squares
    n_neighbors: float  # of an atom, on average
    force: float  # eV/Å, root mean square of the components


def facts(frames: Sequence[data.Frame]) -> Facts:
    """The facts of frames with energies and forces."""
    counts, energies, forces = workflow.labels(frames)
    present = np.flatnonzero(counts.any(axis=0))
    per_element = np.linalg.lstsq(counts[:, present], energies, rcond=None)[0]
    n = sum(len(pairs(frame.system, CUTOFF)[0]) for frame in frames)
    symbols = tuple(ase.data.chemical_symbols[z] for z in present)
    rms = float(np.sqrt(np.mean(forces**2)))
    return Facts(symbols, tuple(np.round(per_element, 6).tolist()), round(float(n / counts.sum()), 2), round(rms, 4))


def beginning(name: str, facts: Facts, seed: int, quick: bool, folder: Path) -> dict[str, Any]:
    """The keys of a TrainConfig that say what is trained; MACE with its first parameters is written to the folder."""
    if name != MACE:
        width = 8 if quick else 64
        head = EnergyHeadConfig(neuron=(width,) if name == NEQUIP or quick else (width,) * 3)
        return {"model": PotentialConfig(facts.elements, descriptor(name, facts, quick), ((workflow.HEAD, head),))}
    options = facts._asdict() | {"size": "quick" if quick else "full"}
    factory = ",".join([TRUSTED, *(f"{key}={json.dumps(value)}" for key, value in options.items())])
    potential, params = checkpoints.load(factory, dtype=np.float32)
    first = _networks(**json.loads(json.dumps(options)))[1](seed)  # one potential for all seeds: they share programs
    start = folder / "start.lamjax"
    checkpoints.save(start, potential, params._replace(descriptor=first), {"what": "random numbers", "seed": seed})
    return {"base": str(start), "bias": "keep"}


def descriptor(name: str, facts: Facts, quick: bool) -> Any:
    """The descriptor of one of lamjax's own models."""
    if name == DPA2:
        return (workflow.QUICK if quick else workflow.FULL).model
    if name == NEQUIP:
        sizes = {"channels": (4, 2), "lmax": 1, "nlayers": 2, "embed_dim": 4, "radial_neuron": (8,)}
        full = {"channels": (16, 8, 4), "lmax": 2, "nlayers": 3, "embed_dim": 16, "radial_neuron": (32, 32)}
        data_says = {"avg_n_neighbors": facts.n_neighbors, "scale": facts.force}
        return NequIPConfig(rcut=CUTOFF, **(sizes if quick else full), **data_says)
    layers = RepflowConfig(
        n_dim=32,
        e_dim=16,
        a_dim=8,
        nlayers=3,
        e_rcut=CUTOFF,
        e_rcut_smth=CUTOFF - 1,
        e_sel=100,
        a_rcut=3.0,
        a_rcut_smth=2.5,
        a_sel=16,
        a_compress_rate=1,
        a_compress_e_rate=2,
        a_compress_use_split=True,
    )
    if quick:
        layers = replace(layers, n_dim=8, e_dim=8, a_dim=4, nlayers=1, a_sel=8)
    return DPA3Config(repflow=layers)


def optimizer(name: str) -> tuple[OptimizerConfig, float]:
    """The optimiser of a model and its first learning rate."""
    kind, rate = RATES[name]
    return OptimizerConfig(kind, max_norm=5.0), rate


def mace(**options: Any) -> tuple[Potential, Any]:
    """MACE of the package mlip with random parameters; energies per element and the scale are fixed numbers."""
    field, draw = _networks(**options)
    return from_mlip(replace(field, params=draw(0)))


def _networks(**options: Any) -> tuple[Any, Callable[[int], Any]]:
    """A force field, and a function that draws its parameters from a seed."""
    return _made(json.dumps(options, sort_keys=True))


@functools.cache
def _made(options: str) -> tuple[Any, Callable[[int], Any]]:
    from mlip.data import DatasetInfo
    from mlip.models import ForceField, Mace
    from mlip.typing.properties import Properties

    given = json.loads(options)
    numbers = [ase.data.atomic_numbers[symbol] for symbol in given["elements"]]
    known = DatasetInfo(
        atomic_energies_map=dict(zip(numbers, given["energies"], strict=True)),
        graph_cutoff_angstrom=CUTOFF,
        avg_num_neighbors=given["n_neighbors"],
        scaling_stdev=given["force"],
    )
    network, fields = Mace(Mace.Config(**NETWORKS[given["size"]]), known), []

    @jax.jit  # operation by operation it takes a minute
    def draw(seed: Any) -> Any:
        fields.append(ForceField.from_mlip_network(network, Properties(), seed=seed))
        return jax.tree.map(lambda x: x.astype(np.float32), fields[-1].params)

    params = draw(0)
    return replace(fields[0], params=params), draw
