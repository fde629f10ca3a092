"""Properties of many relaxed crystals as plain numbers, in few compiled shapes; what is wrong with each is told. On the
host: what is differentiated is in the other modules."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from pydantic import Field

from lamjax import lattice, numerics
from lamjax import neighbors as neighbor_lists
from lamjax.config import configuration
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import vibrations
from lamjax.properties.cells import DENSITY
from lamjax.properties.elastic import elastic_at, sheet_stiffness
from lamjax.properties.minimum import RELAXED, PropertyConfig, at_minimum, check_crystal, hessian
from lamjax.properties.paths import Path, path
from lamjax.properties.supercells import LENGTH, Supercell, commensurate, repeated, supercell
from lamjax.properties.symmetry import n_operations
from lamjax.properties.volumes import EquationOfStateConfig, birch_murnaghan, bulk_modulus_at
from lamjax.system import MASSES, System, pad, scaled
from lamjax.units import GPA

DIRECTIONS = 24  # Hessian products of one call
ATTEMPTED = "the structure did not converge: its properties would be those of no relaxed structure"
JOULES = 96485.33  # J/mol of one eV
CHANGE = 0.5  # of the volume: a crystal that changes more has broken up or collapsed


@configuration
class PhononSurvey:
    """Settings of phonons: the supercell, wave vectors and temperatures."""

    length: Annotated[float, Field(gt=0, description="Å between opposite faces of the supercell, at least")] = LENGTH
    density: Annotated[
        float, Field(gt=0, description="Å: wave vectors of the mesh along a lattice vector a: density/|a|")
    ] = 40.0
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1, description="K")] = (300.0,)
    n_path: Annotated[int, Field(ge=2, description="wave vectors of the bands")] = 120


class Waves(NamedTuple):
    """Phonons of one crystal, for files and figures; numpy."""

    system: System
    cells: Supercell
    constants: np.ndarray
    bands: np.ndarray  # THz, along the path
    path: Path
    mesh: np.ndarray  # THz


def padded(potential: Potential, system: System) -> tuple[System, Neighbors]:
    """Structure and neighbours in arrays of one of few sizes; numpy."""
    system = pad(jax.tree.map(np.asarray, system), _rung(system.n_atoms))
    n_neighbors = neighbor_lists.count(system, potential.shells)
    widths = neighbor_lists.plan_capacities(tuple(_rung(f, 16) for f in n_neighbors), potential.shells)
    lists = neighbor_lists.host_neighbors(system, potential.shells, widths)
    return system, lists._replace(offsets=np.zeros((0, 3), np.int32))


def state(start: System, relaxed: Any, potential: Potential, cell: bool) -> dict[str, Any]:
    """Lattice constants, energy and flags of a relaxed crystal: the numbers of one line of the table."""
    end = relaxed.system
    before, after = _volume(start), _volume(end)
    numbers = np.asarray(end.numbers)
    facts = {
        "converged": bool(relaxed.converged),
        "n_steps": int(relaxed.n_steps),
        "fmax": float(relaxed.fmax),
        "energy_per_atom": float(relaxed.energy) / len(numbers),
    }
    _, lists = padded(potential, end)
    alone = bool(np.any(~np.asarray(lists.mask)[: len(numbers)].any(axis=1)))
    facts["broken_up"] = alone
    if after:
        lengths = np.linalg.norm(np.asarray(end.cell), axis=1)
        facts |= {"volume": after, "volume_per_atom": after / len(numbers), "volume_change": after / before - 1}
        facts |= dict(zip(("a", "b", "c"), map(float, lengths), strict=True))
        facts["density"] = float(DENSITY * MASSES[numbers].sum() / after)
        facts["broken_up"] = alone or (cell and abs(after / before - 1) > CHANGE)
    if remark := _vacuum(end, potential.cutoff):
        facts["remark"] = remark
    operations = n_operations(start), n_operations(end)
    facts |= dict(zip(("operations_before", "operations"), operations, strict=True))
    facts["symmetry_changed"] = operations[0] != operations[1]
    return facts


def elastic(potential: Potential, params: Any, system: System, config: PropertyConfig) -> dict[str, Any]:
    """Elastic constants and B' of a relaxed crystal (GPa), or the stiffness of a slab (N/m)."""
    both = padded(potential, system)
    if int(np.sum(system.pbc)) == 2:
        sheet = _program(potential, config, "sheet")(params, *both)
        return {"sheet_stiffness": np.asarray(sheet.tensor).tolist(), "elastic_stable": bool(sheet.stable)}
    check_crystal(system, "An elastic tensor")
    tensor, bulk = _program(potential, config, "elastic")(params, *both)
    return {
        "bulk_modulus": float(tensor.bulk),
        "shear_modulus": float(tensor.shear),
        "young_modulus": float(tensor.young),
        "poisson_ratio": float(tensor.poisson),
        "pugh_ratio": float(tensor.pugh),
        "anisotropy": float(tensor.anisotropy),
        "bulk_modulus_derivative": float(bulk.derivative),
        "largest_stress": float(np.abs(tensor.stress).max()),
        "elastic_stable": bool(tensor.stable),
        "elastic_tensor": np.asarray(tensor.tensor).tolist(),
    }


def strained(system: System, config: EquationOfStateConfig) -> list[System]:
    """The crystal at the volumes of an equation of state, not relaxed."""
    check_crystal(system, "An equation of state")
    return [scaled(system, 1 + strain) for strain in config.strains]


def equation_of_state(relaxed: Sequence[Any]) -> dict[str, Any]:
    """The fit of Birch and Murnaghan to relaxations at several volumes (those that converged)."""
    kept = [r for r in relaxed if bool(r.converged)]
    if len(kept) < 5:
        raise ValueError(f"only {len(kept)} of {len(relaxed)} volumes could be relaxed; a fit needs 5")
    volumes, energies = np.array([_volume(r.system) for r in kept]), np.array([float(r.energy) for r in kept])
    volume, energy, modulus, derivative, residual = (float(x) for x in birch_murnaghan(volumes, energies))
    return {
        "eos_volume": volume,
        "eos_energy": energy,
        "eos_bulk_modulus": modulus / GPA,
        "eos_derivative": derivative,
        "eos_residual": residual,
        "eos_inside": bool(volumes.min() <= volume <= volumes.max()),
        "eos_volumes": volumes.tolist(),
        "eos_energies": energies.tolist(),
    }


def waves(potential: Potential, params: Any, system: System, config: PhononSurvey) -> tuple[dict[str, Any], Waves]:
    """Phonons of a relaxed crystal: thermodynamics, stability, and bands."""
    cells = supercell(potential, system, length=config.length)
    constants, residual = force_constants(potential, params, system, cells)
    numbers = np.maximum(1, np.ceil(config.density / np.linalg.norm(np.asarray(system.cell), axis=1))).astype(int)
    wave_path = path(system, config.n_path)
    qpoints = np.concatenate([vibrations.mesh(numbers), wave_path.qpoints])
    values = np.asarray(jax.jit(vibrations.frequencies)(constants, system, cells, qpoints))
    on_mesh, bands = values[: -len(wave_path.qpoints)], values[-len(wave_path.qpoints) :]
    exact = on_mesh[commensurate(qpoints[: len(on_mesh)], cells)]
    nothing: Any = np.zeros(0)
    no_constants: Any = None
    phonons = vibrations.Phonons(qpoints[: len(on_mesh)], on_mesh, no_constants, values.min(), nothing, nothing)
    heat = vibrations.thermodynamics(phonons, np.asarray(config.temperatures))
    record = {
        "zero_point_energy": float(heat.zero_point),
        "least_frequency": float(values.min()),
        "largest_frequency": float(values.max()),
        "phonons_stable": bool(values.min() > -vibrations.IMAGINARY),
        "imaginary_share": float(np.mean(on_mesh < -vibrations.IMAGINARY)),
        "sum_rule": float(residual),
        "supercell": np.asarray(cells.repeats).tolist(),
        "mesh": numbers.tolist(),
        "commensurate_share": len(exact) / len(on_mesh),  # of the mesh: the other wave vectors are interpolated
        "temperatures": list(config.temperatures),
        "heat_capacity": [JOULES * float(c) for c in heat.heat_capacity],  # J/(mol K) of cells
        "vibrational_free_energy": [float(f) for f in heat.free_energy],  # eV per cell
    }
    return record, Waves(system, cells, np.asarray(constants), bands, wave_path, on_mesh)


def force_constants(potential: Potential, params: Any, system: System, cells: Supercell) -> tuple[np.ndarray, float]:
    """As `vibrations.force_constants`, of a structure as it is, in shapes that supercells of about one size share."""
    large = jax.tree.map(np.asarray, repeated(jax.tree.map(np.asarray, system), cells))
    n_super, (wide, lists) = large.n_atoms, padded(potential, large)
    along = np.asarray(vibrations.unit_displacements(cells, large.positions.dtype))
    n, products = len(along), []
    for first in range(0, n, DIRECTIONS):
        block = np.zeros((DIRECTIONS, wide.n_atoms, 3), large.positions.dtype)
        some = along[first : first + DIRECTIONS]
        block[: len(some), :n_super] = some
        columns = _program(potential, None, "products")(params, wide, lists, block)
        products.append(np.asarray(columns)[: len(some), :n_super])
    rows = np.concatenate(products).reshape(n // 3, 3, n_super, 3).swapaxes(1, 2)
    return vibrations.with_sum_rule(rows, cells)


@functools.lru_cache(maxsize=32)
def _program(potential: Potential, config: PropertyConfig | None, what: str) -> Callable:
    """A compiled function of (params, structure, list); the same arguments give the same one."""
    match what:
        case "elastic":

            def function(params: Any, system: System, lists: Neighbors) -> tuple:
                equilibrium = at_minimum(potential, params, system, lists, config or RELAXED)
                matrix = hessian(potential, params, equilibrium, None)
                tensor = elastic_at(potential, params, equilibrium, hessian=matrix)
                return tensor, bulk_modulus_at(potential, params, equilibrium, hessian=matrix)

        case "sheet":
            function = lambda p, s, n: sheet_stiffness(potential, p, s, n, config)  # noqa: E731
        case "products":
            function = functools.partial(vibrations.hessian_products, potential)
    return jax.jit(function, compiler_options=numerics.compiler_options())


def _vacuum(system: System, cutoff: float) -> str | None:
    """A message for a periodic structure that leaves more than the cutoff (Å) empty along a lattice vector."""
    if not np.all(np.asarray(system.pbc)):
        return None
    cell = np.asarray(system.cell, np.float64)
    shares, _ = lattice.empty_intervals(np.asarray(system.positions, np.float64) @ np.linalg.inv(cell))
    empty = shares * lattice.face_distances(cell, np.ones(3, bool))
    wide = np.flatnonzero(empty > cutoff)
    if not len(wide):
        return None
    gaps = " and ".join(f"{empty[k]:.1f} Å along {'abc'[k]}" for k in wide)
    kind = {1: "a slab, whose stiffness in N/m is computed with pbc set to F there", 2: "a wire", 3: "a molecule"}
    return (
        f"{gaps} are empty, more than the cutoff of {cutoff:g} Å: {kind[len(wide)]}. Moduli here are those of the cell "
        "with its empty space"
    )


def _rung(n: int, least: int = 1) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half more than is needed."""
    rungs = (m for k in range(40) for m in ((1 << k), 3 << (k - 1) if k else 1))
    return next(m for m in rungs if m >= max(n, least))


def _volume(system: System) -> float:
    """The volume (Å³); 0 for what is no crystal."""
    return float(lattice.volume(np.asarray(system.cell, np.float64))) if np.all(np.asarray(system.pbc)) else 0.0
