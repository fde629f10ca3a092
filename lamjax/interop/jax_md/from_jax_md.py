"""Energy functions of jax-md over neighbour lists as potentials, the inverse of `jax_md.energy_neighbor_list`."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lamjax import neighbors as neighbor_lists
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.imports import jax_md
from lamjax.neighbors import Neighbors, Shell
from lamjax.potential import Potential
from lamjax.system import System

FAR = 20.0  # cutoffs, a distance without interaction


@configuration
class EnergyFnConfig:
    """The settings of a potential that is an energy function of jax-md."""

    energy_fn: Callable
    cutoff: Annotated[float, Field(gt=0, description="Å")]
    elements: tuple[str, ...] | None = None
    of_atoms: Annotated[Callable | None, Field(description="further arguments of atoms, from atomic numbers")] = None
    format: Literal["sparse", "dense"] = "sparse"
    type: ClassVar[str] = "energy function of jax-md"


def from_energy_fn(
    init: Callable | Any,
    energy_fn: Callable,
    cutoff: float,
    elements: tuple[str, ...] | None = None,
    of_atoms: Callable | None = None,
    format: Literal["sparse", "dense"] = "sparse",
) -> Potential:
    """The potential of `energy_fn(params, R, neighbor, **kwargs)`, an energy (eV) as `jax_md.energy` has them.

    The function must be made with the displacement of `space.free()`: periodic images are lamjax's (any cell, any
    number of structures), and reach it as atoms of their own. `init` are its parameters, or a function of a random key
    that gives them. `of_atoms(numbers)` gives further arguments with a row an atom, from atomic numbers. `format` is
    that of the neighbour list that the function wants; one for three-body terms may need "dense", at the cost of the
    number of neighbours squared.

    The energy must be a sum over atoms of functions of their own neighbours within `cutoff` (Å): pairs, embedded atoms,
    three-body terms, symmetry functions with a net. This is tried on a small cluster; ValueError where it is not so, as
    for nets that pass messages, which `interop.mlip` and the descriptors of lamjax are for.
    """
    config = EnergyFnConfig(energy_fn, cutoff, elements, of_atoms, format)
    potential = _build(init if callable(init) else _Given(init), config)
    _check_local(potential, config)
    return potential


class _Given:
    """A function of a key that gives these parameters; equal to another one with equal numbers."""

    def __init__(self, params: Any) -> None:
        leaves, self.structure = jax.tree.flatten(params)
        self.leaves = tuple(map(np.asarray, leaves))

    def __call__(self, key: Any) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())

    def _facts(self) -> tuple:
        return str(self.structure), tuple((x.shape, x.dtype.str, x.tobytes()) for x in self.leaves)


@factory
def _build(make: Callable, config: EnergyFnConfig) -> Potential:
    def init(key: Any = None, dtype: Any = None) -> Any:
        params = make(jax.random.key(0) if key is None else key)
        return jax.tree.map(lambda x: jnp.asarray(x, dtype or jnp.asarray(x).dtype), params)

    def atomic_energies(params: Any, system: System, neighbors: Neighbors) -> jax.Array:
        vectors = neighbor_lists.displacements(system, neighbors)
        numbers = system.numbers
        of_atom = jax.vmap(lambda *one: _of_atom(config, params, *one))
        energies = of_atom(vectors, neighbors.mask, numbers, numbers[neighbors.indices])
        return jnp.where(numbers > 0, energies, 0)

    shells = (Shell(config.cutoff),)
    return Potential(config, shells, init, atomic_energies, config.elements, receptive_field=config.cutoff)


def _of_atom(config: EnergyFnConfig, params: Any, vectors: jax.Array, mask: jax.Array, number, others) -> jax.Array:
    """The energy of one atom from the vectors to its neighbours."""
    atoms = jnp.concatenate([jnp.zeros((1, 3), vectors.dtype), jnp.where(mask[:, None], vectors, FAR * config.cutoff)])
    kinds = jnp.concatenate([number[None], jnp.where(mask, others, number)])
    slots = jnp.where(mask, 1 + jnp.arange(len(mask)), len(atoms))
    return _of_first(config, params, atoms, slots[None], kinds)


def _of_first(config: EnergyFnConfig, params: Any, atoms: jax.Array, slots: jax.Array, kinds: jax.Array) -> jax.Array:
    """The energies of the first of the atoms, whose neighbours are `slots` (a row an atom), summed.

    The function gives the energy of all atoms. So that no atom is alone, where a root of a neighbour sum has no
    derivative, each of the others has a companion for its only neighbour, which moves with it. What they have together
    is taken off by a second energy, in which the first have companions as well, and those are put back from a third.
    """
    k = len(slots)
    empty = 2 * len(atoms) + 2  # an empty slot, see `_energy`
    reference = jnp.full((k, max(slots.shape[1], 1)), empty, slots.dtype)
    reference = reference.at[:, 0].set(jnp.arange(k, dtype=slots.dtype) + len(atoms))
    slots = jnp.where(slots < len(atoms), slots, empty)
    still = jax.lax.stop_gradient(atoms)
    one = jnp.zeros((1, 3), atoms.dtype)
    paired = jax.vmap(lambda kind: _energy(config, params, one, reference[:0], kind[None]) / 4)(kinds[:k])
    companions = _energy(config, params, still, reference, kinds)
    return _energy(config, params, atoms, slots, kinds) - companions + jnp.sum(paired)


def _energy(config: EnergyFnConfig, params: Any, atoms: jax.Array, slots: jax.Array, kinds: jax.Array) -> jax.Array:
    """The function's energy of the atoms, of companions of each, and of a pair far away.

    The first atoms have the neighbours `slots`, all others their companion. An empty slot is the number of places,
    which jax-md reads as the last of them: it is one of the pair, so that no distance is zero.
    """
    partition = jax_md().partition
    m, (k, width), far = len(atoms), slots.shape, FAR * config.cutoff
    n = 2 * m + 2
    step = jnp.asarray([config.cutoff / 2, 0, 0], atoms.dtype)
    pair = jnp.asarray([[0, 2 * far, 0]], atoms.dtype)
    places = jnp.concatenate([atoms, atoms + step, pair, pair + step])
    numbers = jnp.concatenate([kinds, kinds, kinds[:1], kinds[:1]])
    partner = np.concatenate([np.arange(m, 2 * m), np.arange(m), [n - 1, n - 2]])
    partner = jnp.asarray(partner, slots.dtype)
    if config.format == "dense":
        rows = jnp.full((n, max(width, 1)), n, slots.dtype).at[k:, 0].set(partner[k:]).at[:k, :width].set(slots)
        rows = rows.at[n - 1, 1:].set(k)  # an atom out of reach, not itself
        kind = partition.NeighborListFormat.Dense
    else:
        centres = jnp.where(slots < n, jnp.arange(k, dtype=slots.dtype)[:, None], n)
        centres = jnp.concatenate([centres.reshape(-1), jnp.arange(k, n, dtype=slots.dtype)])
        others = jnp.concatenate([jnp.where(slots < n, slots, n - 2).reshape(-1), partner[k:]])
        rows, kind = jnp.stack([centres, others]), partition.NeighborListFormat.Sparse
    error = partition.PartitionError(jnp.zeros((), jnp.uint8))
    neighbor = partition.NeighborList(rows, places, error, None, rows.shape[1], kind, None, None, None)
    more = config.of_atoms(numbers) if config.of_atoms else {}
    return jnp.sum(config.energy_fn(params, places, neighbor, **more))


def _check_local(potential: Potential, config: EnergyFnConfig) -> None:
    """ValueError if the energy of a cluster, close or loose, is not the sum of its atoms' own."""
    n, rng = 6, np.random.default_rng(5)
    dtype = jnp.zeros((), float).dtype
    grid = np.array([(x, y, z) for x in range(3) for y in range(2) for z in range(2)], float)[:n]
    grid += 0.2 * rng.random((n, 3))
    known = [ase.data.atomic_numbers[symbol] for symbol in config.elements or ("H",)]
    numbers = jnp.asarray([known[k % len(known)] for k in range(n)], jnp.int32)
    params = potential.init()
    own = jax.jit(potential.atomic_energies)
    together = jax.jit(lambda *cluster: _of_first(config, params, *cluster))
    for spacing in (0.45, 0.75):
        positions = jnp.asarray(grid * spacing * config.cutoff, dtype)
        system = System(positions, numbers, jnp.zeros((3, 3), dtype), jnp.zeros(3, bool))
        neighbors = neighbor_lists.allocate(system, potential.shells, (n - 1,))
        parts = float(jnp.sum(own(params, system, neighbors)))
        slots = [[j for j in range(n) if j != i] for i in range(n)]  # at any distance
        whole = float(together(positions, jnp.asarray(slots, neighbors.indices.dtype), numbers))
        if np.isfinite(whole) and np.isclose(parts, whole, rtol=1e-4, atol=1e-6):
            continue
        raise ValueError(
            f"The energy of {n} atoms is {whole:.8g} eV, the sum over its atoms of what each has with its neighbours "
            f"within {config.cutoff:g} Å alone is {parts:.8g} eV. Either the energy of an atom depends on more than "
            "its own neighbours (a net that passes messages: use lamjax's own descriptors or interop.mlip), the "
            f"cutoff is another one, or the function wants another `format` than {config.format!r}."
        )
