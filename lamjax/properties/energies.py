"""Energies of forming a crystal, a vacancy or a surface: differences of energies of relaxed structures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lamjax.neighbors import Neighbors, host_neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import RELAXED, Minimum, PropertyConfig
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
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    table = _table(references, system, relaxed.energy.dtype)
    bare = jnp.sum(jnp.where(real(relaxed.system), table[relaxed.system.numbers], 0))
    return Formation((relaxed.energy - bare) / jnp.sum(real(relaxed.system)), relaxed.fmax, relaxed.converged)


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
    formation = formation_energy(potential, params, system, neighbors, references, config)
    return formation._replace(energy=-formation.energy)


def energy_per_atom(
    potential: Potential, params: Any, system: System, neighbors: Neighbors, config: PropertyConfig = RELAXED
) -> Float[Array, ""]:
    """E/N of a relaxed structure (eV), with its derivative by the parameters: a reference of `formation_energy`."""
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    return relaxed.energy / jnp.sum(real(relaxed.system))


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
    crystal, relaxed, matrix = _both(
        (potential, params), (bulk, defective), config, "The cell with the vacancy", range(3)
    )
    xp = _module(bulk[0], defective[0])
    n_cells = xp.abs(xp.round(xp.linalg.det(matrix)))
    n_removed = n_cells * _counts(bulk[0], xp) - _counts(defective[0], xp)
    if xp is np:
        _check_removed(bulk[0], n_removed, removed)
    if removed is None:
        chemical = crystal.energy / jnp.sum(real(crystal.system)) * jnp.ones(len(n_removed))
    else:
        chemical = _table(removed, None, relaxed.energy.dtype)
    energy = relaxed.energy - n_cells * crystal.energy + jnp.vdot(n_removed, chemical)
    return Defect(energy, jnp.maximum(crystal.fmax, relaxed.fmax), crystal.converged & relaxed.converged)


def surface_energy(
    potential: Potential,
    params: Any,
    bulk: tuple[System, Neighbors],
    slab: tuple[System, Neighbors],
    config: PropertyConfig = RELAXED,
    *,
    plane: tuple[int, int] = (0, 1),
) -> Defect:
    """(E(slab) - n E(bulk))/2A of a relaxed slab with two equal surfaces (eV/Å²; `JOULE_PER_M2` of it are J/m²).

    `bulk` is the relaxed cell, `slab` relaxed at a fixed cell whose two lattice vectors in the `plane` are lattice
    vectors of the bulk; n is the ratio of their numbers of atoms, of one composition. The area follows the crystal's
    lattice constants where these depend on the parameters. Raises ValueError for what does not fit.
    """
    if _module(bulk[0], slab[0]) is np:
        _check_slab(bulk[0], slab[0], plane)
    crystal, relaxed, _ = _both((potential, params), (bulk, slab), config, "The slab", plane)
    n_cells = jnp.sum(real(slab[0])) / jnp.sum(real(bulk[0]))
    area = jnp.linalg.norm(jnp.cross(relaxed.system.cell[plane[0]], relaxed.system.cell[plane[1]]))
    energy = (relaxed.energy - n_cells * crystal.energy) / (2 * area)
    return Defect(energy, jnp.maximum(crystal.fmax, relaxed.fmax), crystal.converged & relaxed.converged)


def _both(
    model: tuple[Potential, Any], both: Sequence[tuple[System, Neighbors]], config: PropertyConfig, what: str, axes: Any
) -> tuple[Minimum, Minimum, Array]:
    """Both structures at their minima, the second one in a cell that follows that of the first; and how it is made."""
    bulk, other = both
    for system in (bulk[0], other[0]):
        check_single(system, "An energy of a defect")
    minimum.check_crystal(bulk[0], "The bulk", "Give the relaxed cell of the crystal as bulk.")
    rows, xp = np.array(axes), _module(bulk[0], other[0])
    cells = jax.lax.stop_gradient((other[0].cell, bulk[0].cell)) if xp is jnp else (other[0].cell, bulk[0].cell)
    exact = xp.asarray(cells[0])[rows] @ xp.linalg.inv(xp.asarray(cells[1]))
    matrix = xp.round(exact)
    if xp is np and np.abs(exact - matrix).max() > WHOLE:
        raise ValueError(
            f"{what} does not fit the bulk: its lattice vectors are {np.round(exact, 4).tolist()} of the bulk's, "
            "expected whole numbers. Make it from the relaxed cell of the bulk, and relax it at a fixed cell."
        )
    crystal = minimum.at_minimum(*model, *bulk, config)
    relaxed = minimum.at_minimum(*model, *other, PropertyConfig(None, config.fmax, config.response))
    lattice, system = crystal.system.cell, jax.lax.stop_gradient(relaxed.system)
    change = matrix @ (lattice - jax.lax.stop_gradient(lattice))
    system = system._replace(cell=system.cell.at[rows].add(change))
    energy = model[0].energy(model[1], system, relaxed.neighbors)  # stationary in the positions
    return crystal, relaxed._replace(system=system, energy=energy), matrix


def _check_removed(bulk: System, n_removed: np.ndarray, removed: Mapping[str, Any] | None) -> None:
    names = {ase.data.chemical_symbols[z]: int(n_removed[z]) for z in np.flatnonzero(n_removed)}
    if not names or min(names.values()) < 0:
        raise ValueError(
            f"The defective cell lacks {names or 'no'} atoms of the bulk's; expected one or more, and none too many."
        )
    kinds = _symbols(bulk)
    if removed is None and len(kinds) > 1:
        raise ValueError(
            f"The bulk has the elements {', '.join(kinds)}: say in `removed` what energy the atoms have where they go, "
            'for example {"O": -4.9}.'
        )
    if removed is not None and (missing := [symbol for symbol in names if symbol not in removed]):
        raise ValueError(f"{names[missing[0]]} atoms of {missing[0]} were removed: `removed` has no energy of it.")


def _check_slab(bulk: System, slab: System, plane: tuple[int, int]) -> None:
    if not np.all(np.asarray(slab.pbc)[list(plane)]):
        raise ValueError(f"The slab is not periodic along its lattice vectors {plane}; pbc is {np.asarray(slab.pbc)}.")
    counts = _counts(slab, np), _counts(bulk, np)
    ratios = counts[0] * counts[1].sum() - counts[1] * counts[0].sum()
    if np.any(ratios):
        raise ValueError(
            "Slab and bulk differ in composition: a surface energy is then defined by chemical potentials, which are "
            "not known here. Take a slab of whole formula units."
        )


def _module(*systems: System):
    """numpy where the structures are known, so that they can be checked inside jit too; else jax.numpy."""
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(systems))
    return jnp if traced else np


def _counts(system: System, xp: Any) -> Float[Array, "119"]:
    """Atoms of each atomic number; 0 of padding."""
    numbers, kinds = xp.asarray(system.numbers), xp.arange(len(ase.data.chemical_symbols))
    return xp.sum((numbers[:, None] == kinds) & (kinds > 0), axis=0).astype(float)


def _table(references: Mapping[str, Any], system: System | None, dtype: DTypeLike) -> Float[Array, "119"]:
    if unknown := [s for s in references if s not in ase.data.atomic_numbers]:
        raise ValueError(f"references has {unknown[0]!r}, which is no chemical symbol.")
    if system is not None and _module(system) is np:
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
