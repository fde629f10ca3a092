"""A simulation in one file: all that is needed to go on with it to the last digit, and of what it is one."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lamjax import pytree
from lamjax.domains.lists import DomainShapes
from lamjax.domains.moving import AnyShapes
from lamjax.dynamics.ensembles import Ensemble
from lamjax.dynamics.run import Simulation, like
from lamjax.files import write_atomically
from lamjax.neighbors.grid import Grid, Shapes
from lamjax.potential import Potential
from lamjax.system import System

MAGIC = b"lamjax simulation 1\n"
Identity = dict[str, Any]  # JSON-able


def identity(ensemble: Ensemble, params: PyTree) -> Identity:
    """Ensemble, settings, model and a digest of its parameters, which must agree when a simulation is continued."""
    potential, config, domains = ensemble
    model = digest(potential, params)
    facts = {"ensemble": config.type, **dataclasses.asdict(config), "head": potential.head, "model": model}
    return facts if domains is None else {**facts, "domains": list(domains.counts)}


def digest(potential: Potential, params: PyTree) -> str:
    """A digest of a model: its config, elements and parameters."""
    model = hashlib.sha256(repr((potential.config, potential.elements)).encode())
    for content in pytree.contents(params):
        model.update(content)
    return model.hexdigest()


def save(path: str | Path, simulation: Simulation, of: Identity, facts: dict[str, Any] | None = None) -> None:
    """Write a simulation: state, thermostats, random numbers and lists. The file is there whole, or as it was.

    `of` is its `identity`, `facts` what else shall be found again (JSON-able).
    """
    header = {"step": simulation.step, "n_grown": simulation.n_grown, "shapes": simulation.shapes, "of": of}
    leaves = [_plain(leaf) for leaf in jax.tree.leaves(_arrays(simulation))]
    arrays = {str(k): leaf for k, leaf in enumerate(leaves)}
    content = {"header": json.dumps({**header, "facts": facts or {}}), "arrays": arrays}
    write_atomically(path, MAGIC + flax.serialization.msgpack_serialize(content))


def restore(
    path: str | Path,
    ensemble: Ensemble,
    params: PyTree,
    system: System,
    fixed: Array | None = None,
    of: Identity | None = None,
) -> tuple[Simulation, dict[str, Any]]:
    """The simulation of a file, and the facts that were saved with it.

    Nothing of the file is executed. Raises ValueError for a file that is damaged, and for one of another ensemble,
    model, structure (`system` is that of the start) or precision, with what is different.
    """
    header, arrays = _read(Path(path))
    _check(path, header["of"], identity(ensemble, params) if of is None else of)
    fixed = np.zeros((system.n_atoms, 3), bool) if fixed is None else np.asarray(fixed, bool)
    shapes = _shapes(header["shapes"])
    empty = Simulation(None, system, fixed, None, shapes, header["step"], header["n_grown"])
    wanted = like(ensemble, params, empty)
    structure, leaves_read = jax.tree.structure(_arrays(wanted)), list(arrays)
    if len(leaves_read) != structure.num_leaves:
        raise ValueError(f"{path} is of a structure with other parameters, or of another version of jax-md.")
    leaves = [_typed(leaf, mould) for leaf, mould in zip(leaves_read, jax.tree.leaves(_arrays(wanted)), strict=True)]
    if any(leaf is None for leaf in leaves):
        raise ValueError(f"{path} is of a structure with another number of atoms, or of another precision.")
    state, start, there_fixed, lists = jax.tree.unflatten(structure, leaves)
    if not jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), (start, there_fixed), (system, fixed))):
        raise ValueError(f"{path} is of a simulation of another structure, or of one with other fixed atoms.")
    return wanted._replace(state=state, system=start, fixed=there_fixed, lists=lists), header["facts"]


def _shapes(sizes: list) -> AnyShapes:
    """The shapes that a file has as lists."""
    capacities, width, (bins, reach, capacity), *of_domains = sizes
    plain = Shapes(tuple(capacities), width, Grid(tuple(bins), tuple(reach), capacity))
    if not of_domains:
        return plain
    n_atoms, images = of_domains
    return DomainShapes(*plain, n_atoms, tuple(images))


def described(path: str | Path) -> tuple[int, Identity]:
    """The step of a file, and of what simulation it is. Raises ValueError for a file that is damaged."""
    header, _ = _read(Path(path))
    return header["step"], header["of"]


def _arrays(simulation: Simulation) -> Any:
    return simulation.state, simulation.system, simulation.fixed, simulation.lists


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _typed(leaf: np.ndarray, mould: Any) -> Array | None:
    """The array as it is on the device; None if it is not of that shape and type."""
    array = jax.random.wrap_key_data(leaf) if _is_key(mould) else jnp.asarray(leaf)
    return array if array.shape == mould.shape and array.dtype == mould.dtype and leaf.dtype.kind != "O" else None


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header, and the arrays in order."""
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} is no restart file of a simulation.")
    try:
        stored: Any = flax.serialization.msgpack_restore(content[len(MAGIC) :])
        return json.loads(stored["header"]), [stored["arrays"][str(k)] for k in range(len(stored["arrays"]))]
    except Exception as error:  # msgpack and flax raise many kinds for a damaged file
        raise ValueError(f"{path}: the restart file is damaged ({type(error).__name__}: {error}).") from error


def _check(path: str | Path, stored: Identity, wanted: Identity) -> None:
    """Raise ValueError that lists what is different."""
    wanted = json.loads(json.dumps(wanted))
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if keys:
        differences = ", ".join(
            f"{key} was {stored.get(key)}, is {wanted.get(key)}" if key != "model" else "another model" for key in keys
        )
        raise ValueError(
            f"{path} is of another simulation: {differences}. Go on with what it began with, or begin another."
        )
