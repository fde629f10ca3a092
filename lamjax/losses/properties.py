"""The loss of what is computed of relaxed structures: moduli, volumes, heat capacities."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import Field

from lamjax import neighbors as neighbor_lists
from lamjax import properties, pytree
from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.data.structure_batches import SHRINK
from lamjax.factories import factory
from lamjax.lattice import image_offsets, padded_images
from lamjax.losses.property_targets import AWAY, ELASTIC, JOULES, SHAPES, VIBRATIONAL, TargetConfig, target_value
from lamjax.neighbors import Neighbors
from lamjax.neighbors.verlet import SKIN
from lamjax.potential import Potential, check_potential
from lamjax.properties import PropertyConfig, Supercell
from lamjax.relaxation import CellConfig, Implicit, RelaxConfig, relax
from lamjax.system import System, real, volume

Count = Annotated[int, Field(ge=1)]
_REMEDY = "losses.property_batch makes one of structures and targets."


@configuration
class PhononTargetConfig:
    """Supercell, wave vectors and temperature of a heat capacity."""

    repeats: Annotated[
        tuple[Count, Count, Count], Field(description="cells along each lattice vector of the supercell")
    ] = (2, 2, 2)
    mesh: Annotated[tuple[Count, Count, Count], Field(description="wave vectors")] = (8, 8, 8)
    temperature: Annotated[float, Field(gt=0, description="K")] = 300.0


@configuration
class PropertyLossConfig:
    """Which properties, and how the structures are relaxed before they are computed."""

    targets: tuple[TargetConfig, ...]
    relax: Annotated[RelaxConfig, Field(description="how structures are relaxed; its adjoint does not count")] = field(
        default_factory=lambda: RelaxConfig(fmax=1e-3, max_steps=1000, cell=CellConfig())
    )
    error: Annotated[Literal["squared", "absolute"], Field(description="absolute: sqrt(1 + x²) - 1, smooth at 0")] = (
        "absolute"
    )
    phonons: Annotated[PhononTargetConfig, Field(description="of heat capacities")] = PhononTargetConfig()
    type: Literal["property"] = "property"

    def __post_init__(self) -> None:
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"targets must name different properties, at least one; got {names}.")
        if unscaled := [target.name for target in self.targets if target.scale is None]:
            raise ValueError(f"{', '.join(unscaled)}: give a scale, the size of an error that counts 1.")
        if self.relax.cell is None and set(names) - ELASTIC - VIBRATIONAL:
            raise ValueError("Volumes and lengths have targets, but the cell does not relax: set `cell` of `relax`.")

    @property
    def names(self) -> set[str]:
        """The names of the properties."""
        return {target.name for target in self.targets}


class PropertyBatch(NamedTuple):
    """Crystals and what is known of them. A target that is missing is 0 with weight 0."""

    start: System  # leading axis; the relaxed structure of an earlier step saves steps
    neighbors: Neighbors
    targets: dict[str, Float[Array, "n_batch ..."]]  # in the first unit of each quantity
    weights: dict[str, Float[Array, " n_batch"]]
    cells: Supercell | None = None  # of each, where heat capacities have targets


class PropertyValues(NamedTuple):
    """Properties of structures that were relaxed, and what may be wrong with each."""

    values: dict[str, Float[Array, "n_batch ..."]]  # in the first unit of each quantity; NaN where not `converged`
    converged: Bool[Array, " n_batch"]  # the relaxation, to a crystal that has not fallen apart
    stable: Bool[Array, " n_batch"]  # no stiffness that was computed is negative and no imaginary frequency
    n_steps: Int[Array, " n_batch"]


def property_batch(
    potential: Potential, systems: Sequence[System], targets: Sequence[Mapping[str, Any]], config: PropertyLossConfig
) -> PropertyBatch:
    """The batch of some crystals of one number of atoms, with a dict {property: value} for each. On the host.

    Lists have room for a few neighbours more. Raises ValueError for a value of a wrong shape, for one that is not
    finite, and for values that can only be in another unit than the config has, or belong to another structure.
    """
    if len(systems) != len(targets) or not systems:
        raise ValueError(f"There are targets for {len(targets)} of {len(systems)} structures.")
    if len({s.n_atoms for s in systems}) > 1:
        raise ValueError(
            f"Structures of one batch have one number of atoms, got {sorted({s.n_atoms for s in systems})}. "
            "Make a batch for each, or pad them (system.pad)."
        )
    for number, system in enumerate(systems):
        properties.check_crystal(system, f"The property of structure {number}")
    counts = [neighbor_lists.count(s, potential.shells) for s in systems]
    widths = neighbor_lists.plan_capacities(tuple(8 + max(x) for x in zip(*counts, strict=True)), potential.shells)
    values, weights = {}, {}
    for target in config.targets:
        rows = [
            target_value(target, known.get(target.name), s, str(k))
            for k, (s, known) in enumerate(zip(systems, targets, strict=True))
        ]
        values[target.name] = np.stack([np.zeros(SHAPES.get(target.name, ())) if x is None else x for x in rows])
        weights[target.name] = np.array([x is not None for x in rows], float)
    start = pytree.stack([jax.tree.map(np.asarray, s) for s in systems])
    cells = _supercells(potential, systems, widths, config.phonons) if VIBRATIONAL & config.names else None
    lists = _lists(potential, systems, widths)
    return jax.tree.map(jnp.asarray, PropertyBatch(start, lists, values, weights, cells))


def _lists(potential: Potential, systems: Sequence[System], widths: tuple[int, ...]) -> Neighbors:
    """Neighbours of structures of one number of atoms, stacked, with the images that cells a tenth shorter need."""
    images = [image_offsets(SHRINK * s.cell, s.pbc, potential.cutoff + SKIN) for s in systems]
    most = max(map(len, images))

    def lists(system: System, offsets: np.ndarray) -> Neighbors:
        made = neighbor_lists.host_neighbors(system, potential.shells, widths)
        return made._replace(offsets=padded_images(offsets, most))

    return pytree.stack([lists(*one) for one in zip(systems, images, strict=True)])


def _supercells(
    potential: Potential, systems: Sequence[System], widths: tuple[int, ...], config: PhononTargetConfig
) -> Supercell:
    """Their supercells, stacked; an atom of them has the neighbours of its copy in the cell."""
    plain = [jax.tree.map(np.asarray, s) for s in systems]
    cells = [properties.supercell(potential, s, config.repeats, capacities=widths) for s in plain]
    lists = _lists(potential, [properties.repeated(s, c) for s, c in zip(plain, cells, strict=True)], widths)
    most = max(c.weights.shape[-1] for c in cells)

    def widened(c: Supercell) -> Supercell:
        more = (0, most - c.weights.shape[-1])
        images = np.pad(c.images, ((0, 0), (0, 0), more, (0, 0)))
        return c._replace(neighbors=None, images=images, weights=np.pad(c.weights, ((0, 0), (0, 0), more)))

    return pytree.stack([widened(c) for c in cells])._replace(neighbors=lists)


@factory
def property_loss(potential: Potential, config: PropertyLossConfig) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of properties of structures that are relaxed first.

    The batch is a `PropertyBatch`. Each structure is relaxed with the parameters as they are; the gradient is that of
    the property of the relaxed structure, its response to the parameters included (see `properties`). The scalar is the
    mean over the structures of Σ weight · error((P - target)/scale), a tensor counting the mean of its components.
    Structures that do not converge, fly apart or lose neighbours are left out (n_dropped); those with unstable elastic
    constants or imaginary frequencies count, and are counted (n_unstable). Heat capacities are those of the supercell
    and wave vectors of `config.phonons`; structures of a batch with such targets have no padding.
    """
    check_potential(potential, "property_loss")
    expect(config, PropertyLossConfig, "property_loss takes a PropertyLossConfig second", "It names the targets.")
    size = {"squared": jnp.square, "absolute": lambda x: jnp.sqrt(1 + x * x) - 1}[config.error]

    def loss(params: PyTree, batch: PropertyBatch, lr_ratio: float | Array = 1.0) -> tuple[Array, dict]:
        expect(batch, PropertyBatch, "property_loss takes a PropertyBatch", _REMEDY)
        crystals, counted, n_steps = _relaxed(potential, params, batch, config)

        def judged(params):
            values, stable, settled = jax.vmap(lambda x: _properties(potential, config, params, *x))(crystals)
            return *_compared(values, batch, counted & settled, config, size), stable, counted & settled

        shapes = jax.eval_shape(judged, params)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, metrics, stable, counted = jax.lax.cond(jnp.any(counted), judged, lambda params: nothing, params)
        present = jnp.any(real(batch.start), axis=-1)
        return total, metrics | {
            "n_structures": jnp.sum(counted),
            "n_dropped": jnp.sum(present & ~counted),
            "n_unstable": jnp.sum(counted & ~stable),
            "n_steps": jnp.sum(jnp.where(counted, n_steps, 0)) / jnp.maximum(jnp.sum(counted), 1),
        }

    return loss


@factory
def property_values(potential: Potential, config: PropertyLossConfig) -> Callable:
    """The function (params, PropertyBatch) -> PropertyValues of structures that are relaxed first.

    What `property_loss` compares with the targets, of each structure, and whether it is to be trusted.
    """
    check_potential(potential, "property_values")
    expect(config, PropertyLossConfig, "property_values takes a PropertyLossConfig second", "It names the properties.")

    def values_of(params: PyTree, batch: PropertyBatch) -> PropertyValues:
        expect(batch, PropertyBatch, "property_values takes a PropertyBatch", _REMEDY)
        crystals, counted, n_steps = _relaxed(potential, params, batch, config)
        values, stable, settled = jax.vmap(lambda x: _properties(potential, config, params, *x))(crystals)
        counted = counted & settled
        values = {name: pytree.where(counted, x, jnp.full_like(x, jnp.nan)) for name, x in values.items()}
        return PropertyValues(values, counted, stable & counted, n_steps)

    return values_of


def _relaxed(potential, params, batch: PropertyBatch, config: PropertyLossConfig):
    """(structures, lists, supercells) where relaxations end, which converged, steps; without derivatives.

    What did not converge, or fell apart, is replaced by one that did, so that no NaN reaches a gradient.
    """
    still, shells = jax.lax.stop_gradient, potential.shells
    relaxation = dataclasses.replace(config.relax, adjoint=Implicit())  # which stores no states of the path
    end = still(relax(potential, still(params), batch.start, batch.neighbors, relaxation))
    lists = jax.vmap(lambda n, s: neighbor_lists.update(n, s, shells))(batch.neighbors, end.system)
    counted, cells = end.converged & ~lists.overflow & jnp.any(real(batch.start), axis=-1), batch.cells
    stretch = volume(end.system) / volume(batch.start)
    counted = counted & (stretch < AWAY) & (stretch > 1 / AWAY)  # the others have broken up or collapsed
    if cells is not None:
        large = jax.vmap(properties.repeated)(end.system, cells)
        near = jax.vmap(lambda n, s: neighbor_lists.update(n, s, shells))(cells.neighbors, large)
        cells, counted = cells._replace(neighbors=near), counted & ~near.overflow
    crystals = end.system, lists, cells
    return still((pytree.where(counted, crystals, pytree.take(crystals, jnp.argmax(counted))), counted, end.n_steps))


def _properties(potential, config: PropertyLossConfig, params, system: System, lists: Neighbors, cells):
    """Properties of one relaxed structure by name, and whether it is stable and converged."""
    cell, names = config.relax.cell, config.names
    at = PropertyConfig(cell=cell, fmax=max(config.relax.fmax, 1e-12))
    minimum = properties.at_minimum(potential, params, system, lists, at)
    crystal = properties.lattice_at(minimum)
    n_atoms = jnp.maximum(jnp.sum(real(system)), 1)
    values = {"volume": crystal.volume, "volume_per_atom": crystal.volume / n_atoms}
    values |= {"density": crystal.density, "lengths": crystal.lengths}
    stable = jnp.ones((), bool)
    if ELASTIC & names:
        elastic = properties.elastic_at(potential, params, minimum, 0.0 if cell is None else cell.pressure)
        values |= {"bulk_modulus": elastic.bulk, "shear_modulus": elastic.shear}
        values |= {"young_modulus": elastic.young, "elastic_tensor": elastic.tensor}
        stable = stable & elastic.stable
    if VIBRATIONAL & names:
        waves = properties.phonons_at(potential, params, minimum, cells, properties.mesh(config.phonons.mesh))
        heat = JOULES * properties.thermodynamics(waves, config.phonons.temperature).heat_capacity[0]
        values |= {"heat_capacity": heat, "heat_capacity_per_atom": heat / n_atoms}
        stable = stable & waves.stable
    return {name: values[name] for name in sorted(names)}, stable, crystal.converged


def _compared(values: dict, batch: PropertyBatch, counted, config: PropertyLossConfig, size: Callable):
    """The mean over the kept structures, and the mean absolute error of each property in its first unit."""
    total, metrics = 0.0, {}
    for target in config.targets:
        weight = jnp.where(counted, batch.weights[target.name], 0)
        known = (weight > 0).reshape(-1, *[1] * len(SHAPES.get(target.name, ())))
        error = jnp.where(known, values[target.name] - batch.targets[target.name], 0)
        axes = tuple(range(1, error.ndim))
        total = total + target.weight * jnp.sum(weight * jnp.mean(size(error / target.scale), axis=axes))
        number = jnp.maximum(jnp.sum(weight > 0), 1)
        metrics[f"{target.name}_mae"] = jnp.sum(jnp.mean(jnp.abs(jax.lax.stop_gradient(error)), axis=axes)) / number
    return total / jnp.maximum(jnp.sum(counted), 1), metrics
