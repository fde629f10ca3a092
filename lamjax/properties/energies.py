"""Energies of forming a crystal, a vacancy or a surface: differences of energies of relaxed structures."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from jaxtyping import Array, Bool, Float

from lamjax.neighbors import Neighbors, host_neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import RELAXED, PropertyConfig
from lamjax.system import System, as_system, check_single, real

JOULE_PER_M2 = ase_units._e * 1e20  # J/m² of one eV/Å²: 16.0218
WHOLE = 1e-3  # how far from whole numbers lattice vectors of one cell may be in those of another


class Formation(NamedTuple):
    """An energy relative to references."""

    energy: Float[Array, ""]  # eV per atom; of a crystal bound more strongly than its references negative
    fmax: Float[Array, ""]  # eV/Å
    converged: Bool[Array, ""]


class Defect(NamedTuple):
    """An energy of a defect or surface."""

    energy: Float[Array, ""]  # eV of a defect, eV/Å² of a surface
    fmax: Float[Array, ""]  # eV/Å, the largest of both structures
    converged: Bool[Array, ""]  # both


def formation_energy(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    references: Mapping[str, Any],
    config: PropertyConfig = RELAXED,
) -> Formation:
    """(E - Σ_i μ(element of i))/N of a relaxed structure (eV/atom), μ the `references` {symbol: eV per atom}.

    References are numbers, or functions of the parameters such as `energy_per_atom` of the elements' crystals, whose
    derivatives then count. With energies of single atoms (`atom_energy`) minus the result is the cohesive energy. Under
    a pressure it is still E that is meant. Raises ValueError for an element without a reference.
    """
    here = minimum.at_minimum(potential, params, system, neighbors, config)
    table = _table(references, system, here.energy.dtype)
    bare = jnp.sum(table[here.system.numbers])
    return Formation((here.energy - bare) / jnp.sum(real(here.system)), here.fmax, here.converged)


def cohesive_energy(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    references: Mapping[str, Any] | None = None,
    config: PropertyConfig = RELAXED,
) -> Formation:
    """(Σ_i E(free atom i) - E)/N of a relaxed structure (eV/atom), positive where it is bound.

    `references` {symbol: eV of the free atom}; None: those of this potential, which are bad
    where it has never seen free atoms.
    """
    if references is None:
        numbers = np.unique(np.asarray(as_system(system).numbers))
        symbols = [ase.data.chemical_symbols[z] for z in numbers if z > 0]
        references = {symbol: atom_energy(potential, params, symbol) for symbol in symbols}
    found = formation_energy(potential, params, system, neighbors, references, config)
    return found._replace(energy=-found.energy)


def energy_per_atom(
    potential: Potential, params: Any, system: System, neighbors: Neighbors, config: PropertyConfig = RELAXED
) -> Float[Array, ""]:
    """E/N of a relaxed structure (eV), with its derivative by the parameters: a reference of `formation_energy`."""
    here = minimum.at_minimum(potential, params, system, neighbors, config)
    return here.energy / jnp.sum(real(here.system))


def atom_energy(potential: Potential, params: Any, symbol: str) -> Float[Array, ""]:
    """The energy of a single atom, far from all others (eV)."""
    if symbol not in ase.data.atomic_numbers:
        raise ValueError(f"{symbol!r} is no chemical symbol.")
    alone = System(
        np.zeros((1, 3)), np.array([ase.data.atomic_numbers[symbol]], np.int32), np.zeros((3, 3)), np.zeros(3, bool)
    )
    lists = host_neighbors(alone, potential.shells, tuple(4 for _ in potential.shells))
    return potential.energy(params, jax.tree.map(jnp.asarray, alone), jax.tree.map(jnp.asarray, lists))


def vacancy_formation(
    potential: Potential,
    params: Any,
    bulk: tuple[System, Neighbors],
    defective: tuple[System, Neighbors],
    config: PropertyConfig = RELAXED,
    *,
    removed: Mapping[str, Any] | None = None,
) -> Defect:
    """E(defective) - n E(bulk) + Σ μ of a relaxed supercell with atoms taken away (eV); positive.

    `bulk` is the relaxed cell, `defective` a supercell of it, relaxed at the fixed cell of the crystal, with n cells of
    it before the `removed` atoms {symbol: μ (eV)} were taken away. Without `removed` the bulk has one element, and its
    atoms go into the bulk: μ = E(bulk)/N, which gives E(defective) - (N - 1)/N E(perfect) of one vacancy. The supercell
    follows the crystal's lattice constants where these depend on the parameters. Raises ValueError if it is none.
    """
    crystal, here, matrix = _both(potential, params, bulk, defective, config, "The supercell with the vacancy", 3)
    n_cells = abs(round(float(np.linalg.det(matrix))))
    count = {s: _count(defective[0], s) - n_cells * _count(bulk[0], s) for s in _symbols(bulk[0], defective[0])}
    if max(count.values()) > 0 or not any(count.values()):
        raise ValueError(f"The defective cell has {count} atoms beside {n_cells} cells of the bulk: expected fewer.")
    if removed is None:
        if len(_symbols(bulk[0])) > 1:
            raise ValueError(
                f"The bulk has the elements {', '.join(_symbols(bulk[0]))}: say in `removed` what the energy of the "
                'atoms is where they go, for example {"O": -4.9}.'
            )
        removed = {_symbols(bulk[0])[0]: crystal.energy / len(np.asarray(bulk[0].numbers))}
    if missing := [s for s, n in count.items() if n and s not in removed]:
        raise ValueError(f"{-count[missing[0]]} atoms of {missing[0]} were removed, but `removed` has no energy of it.")
    gone = sum(-n * removed[s] for s, n in count.items() if n)
    energy = here.energy - n_cells * crystal.energy + gone
    return Defect(energy, jnp.maximum(crystal.fmax, here.fmax), crystal.converged & here.converged)


def surface_energy(
    potential: Potential,
    params: Any,
    bulk: tuple[System, Neighbors],
    slab: tuple[System, Neighbors],
    config: PropertyConfig = RELAXED,
) -> Defect:
    """(E(slab) - n E(bulk))/2A of a relaxed slab with two equal surfaces (eV/Å²; `JOULE_PER_M2` of it are J/m²).

    `bulk` is the relaxed cell, `slab` relaxed at a fixed cell whose two periodic (or first two) lattice vectors are
    lattice vectors of the bulk; n is the ratio of their numbers of atoms, composition must agree. The area follows the
    crystal's lattice constants where these depend on the parameters. Raises ValueError for what does not fit.
    """
    crystal, here, _ = _both(potential, params, bulk, slab, config, "The slab", 2)
    counts = {s: (_count(slab[0], s), _count(bulk[0], s)) for s in _symbols(bulk[0], slab[0])}
    ratios = {a / b if b else np.inf for a, b in counts.values()}
    if len(ratios) != 1 or np.inf in ratios:
        raise ValueError(f"Slab and bulk differ in composition ({counts}): they define no surface energy.")
    a, b = _plane(slab[0])
    area = jnp.linalg.norm(jnp.cross(here.system.cell[a], here.system.cell[b]))
    energy = (here.energy - ratios.pop() * crystal.energy) / (2 * area)
    return Defect(energy, jnp.maximum(crystal.fmax, here.fmax), crystal.converged & here.converged)


def _both(potential, params, bulk, other, config: PropertyConfig, what: str, n_axes: int):
    """Both structures at their minima, the second one in a cell that follows that of the first; and how it is made."""
    for system in (bulk[0], other[0]):
        check_single(system, "An energy of a defect")
    minimum.check_crystal(bulk[0], "The bulk", "Give the relaxed cell of the crystal as bulk.")
    crystal = minimum.at_minimum(potential, params, *bulk, config)
    axes = list(range(3)) if n_axes == 3 else list(_plane(other[0]))
    matrix = np.asarray(other[0].cell, np.float64)[axes] @ np.linalg.inv(np.asarray(bulk[0].cell, np.float64))
    if np.abs(matrix - np.round(matrix)).max() > WHOLE:
        raise ValueError(
            f"{what} does not fit the bulk: its lattice vectors are {np.round(matrix, 4).tolist()} of the bulk's, "
            "expected whole numbers. Make it from the relaxed cell of the bulk, and relax it at a fixed cell."
        )
    fixed_cell = PropertyConfig(None, config.fmax, config.response)
    here = minimum.at_minimum(potential, params, *other, fixed_cell)
    change = jnp.asarray(np.round(matrix), here.z.dtype) @ (
        crystal.system.cell - jax.lax.stop_gradient(crystal.system.cell)
    )
    cell = here.system.cell.at[jnp.array(axes)].add(change)
    system = jax.lax.stop_gradient(here.system)._replace(cell=cell)
    energy = potential.energy(params, system, here.neighbors)  # stationary in the positions
    return crystal, here._replace(system=system, energy=energy), np.round(matrix)


def _plane(slab: System) -> tuple[int, int]:
    """The two periodic axes; of a slab in a periodic box the first two."""
    periodic = np.flatnonzero(np.asarray(slab.pbc))
    if len(periodic) == 3:
        return 0, 1
    if len(periodic) != 2:
        raise ValueError(f"A slab is periodic along two or three lattice vectors, got pbc {np.asarray(slab.pbc)}.")
    return int(periodic[0]), int(periodic[1])


def _table(references: Mapping[str, Any], system: System, dtype) -> Float[Array, "119"]:
    if unknown := [s for s in references if s not in ase.data.atomic_numbers]:
        raise ValueError(f"references has {unknown[0]!r}, which is no chemical symbol.")
    if not isinstance(system.numbers, jax.core.Tracer):
        if missing := [s for s in _symbols(system) if s not in references]:
            given = ", ".join(references) or "none"
            raise ValueError(f"There is no reference energy of {', '.join(missing)}; given: {given}.")
    table = jnp.zeros(len(ase.data.chemical_symbols), dtype)
    for symbol, energy in references.items():
        table = table.at[ase.data.atomic_numbers[symbol]].set(energy)
    return table


def _symbols(*systems: System) -> list[str]:
    numbers = np.unique(np.concatenate([np.asarray(s.numbers) for s in systems]))
    return [ase.data.chemical_symbols[z] for z in numbers if z > 0]


def _count(system: System, symbol: str) -> int:
    return int(np.sum(np.asarray(system.numbers) == ase.data.atomic_numbers[symbol]))
