"""Losses of what is computed of relaxed structures: moduli, volumes, force constants."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lamjax import neighbors as neighbor_lists
from lamjax import properties, pytree, units
from lamjax.arguments import ArgumentError, as_tuples, describe, expect
from lamjax.factories import factory
from lamjax.neighbors import Neighbors
from lamjax.potential import check_potential
from lamjax.properties import PropertyConfig
from lamjax.relaxation import CellConfig, Implicit, RelaxConfig, relax
from lamjax.system import System, real

MODULI = {"GPa": 1.0, "kbar": 0.1, "eV/Å³": 1 / units.GPA}
UNITS = {  # of each quantity, and how much of the first one it is
    "volume": {"Å³": 1.0},
    "volume_per_atom": {"Å³": 1.0},
    "density": {"g/cm³": 1.0, "kg/m³": 1e-3},
    "lengths": {"Å": 1.0},
    "bulk_modulus": MODULI,
    "shear_modulus": MODULI,
    "young_modulus": MODULI,
    "elastic_tensor": MODULI,
}
SHAPES = {"lengths": (3,), "elastic_tensor": (6, 6)}
LARGEST = {name: 3000.0 for name, unit in UNITS.items() if unit is MODULI}  # GPa; diamond has 1100
ELASTIC = {name for name, unit in UNITS.items() if unit is MODULI}


@dataclass(frozen=True)
class TargetConfig:
    """One quantity that is compared with targets."""

    name: str  # one of UNITS
    weight: float = 1.0
    scale: float = 1.0  # in the first unit of the quantity: an error of this size counts 1
    unit: str | None = None  # of the targets; None: the first one of the quantity
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.name not in UNITS:
            raise ValueError(f"Unknown property {self.name!r}; known: {', '.join(UNITS)}.")
        if self.unit is not None and self.unit not in UNITS[self.name]:
            raise ValueError(f"{self.name} has no unit {self.unit!r}; known: {', '.join(UNITS[self.name])}.")
        if not (self.scale > 0 and self.weight >= 0):
            raise ValueError(f"A target needs scale > 0 and weight >= 0, got {self.scale} and {self.weight}.")


@dataclass(frozen=True)
class PropertyLossConfig:
    """Which properties, and how the structures are relaxed before they are computed."""

    targets: tuple[TargetConfig, ...]
    relax: RelaxConfig = field(
        default_factory=lambda: RelaxConfig(fmax=1e-3, max_steps=1000, cell=CellConfig())
    )  # its adjoint does not count
    error: Literal["squared", "absolute"] = "absolute"  # absolute: sqrt(1 + x²) - 1, smooth at 0
    type: Literal["property"] = "property"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        as_tuples(self)
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"targets must name different properties, at least one; got {names}.")
        if self.relax.cell is None and set(names) - ELASTIC:
            raise ValueError("Volumes and lengths have targets, but the cell does not relax: set `cell` of `relax`.")


class PropertyBatch(NamedTuple):
    """Crystals and what is known of them. A target that is missing is 0 with weight 0."""

    start: System  # leading axis; the relaxed structure of an earlier step saves steps
    neighbors: Neighbors
    targets: dict[str, Float[Array, "n_batch ..."]]  # in the first unit of each quantity
    weights: dict[str, Float[Array, " n_batch"]]


def property_batch(
    potential, systems: Sequence[System], targets: Sequence[Mapping[str, Any]], config: PropertyLossConfig
) -> PropertyBatch:
    """The batch of some crystals of one number of atoms, with a dict {property: value} for each. On the host.

    Lists have room for a few neighbours more. Raises ValueError for a value of a wrong shape, for one that is not
    finite, and for moduli that can only be in another unit than was said.
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
    found = [neighbor_lists.count(s, potential.shells) for s in systems]
    widths = neighbor_lists.plan_capacities(tuple(8 + max(x) for x in zip(*found, strict=True)), potential.shells)
    n_images = max(len(neighbor_lists.image_offsets(s.cell, s.pbc, potential.cutoff)) for s in systems)
    lists = [neighbor_lists.host_neighbors(s, potential.shells, widths, n_images) for s in systems]
    values, weights = {}, {}
    for target in config.targets:
        rows = [_value(target, known.get(target.name), number) for number, known in enumerate(targets)]
        values[target.name] = np.stack([np.zeros(SHAPES.get(target.name, ())) if x is None else x for x in rows])
        weights[target.name] = np.array([x is not None for x in rows], float)
    stacked = pytree.stack([jax.tree.map(np.asarray, s) for s in systems])
    return jax.tree.map(jnp.asarray, PropertyBatch(stacked, pytree.stack(lists), values, weights))


def _value(target: TargetConfig, value, number: int):
    """A target in the first unit of its quantity; None if there is none."""
    if value is None:
        return None
    value, shape = np.asarray(value, np.float64), SHAPES.get(target.name, ())
    if value.shape != shape or not np.all(np.isfinite(value)):
        raise ValueError(
            f"{target.name} of structure {number} is {value.tolist()}: expected "
            f"{'a finite number' if not shape else f'finite numbers of shape {shape}'}."
        )
    value = value * UNITS[target.name][target.unit or next(iter(UNITS[target.name]))]
    if np.abs(value).max() > LARGEST.get(target.name, np.inf):
        raise ValueError(
            f"{target.name} of structure {number} is {np.abs(value).max():.4g} GPa, which no crystal has. Say the "
            f"unit of the targets (TargetConfig(unit=...)): {', '.join(UNITS[target.name])}."
        )
    return value


@factory
def property_loss(potential, config: PropertyLossConfig) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of properties of structures that are relaxed first.

    The batch is a `PropertyBatch`. Each structure is relaxed with the parameters as they are; the gradient is that of
    the property of the relaxed structure, its response to the parameters included (see `properties`). The scalar is the
    mean over the structures of Σ weight · error((P - target)/scale), a tensor counting the mean of its components.
    Structures that do not converge, fly apart or lose neighbours are left out (n_dropped); those with unstable elastic
    constants count, and are counted (n_unstable).
    """
    check_potential(potential, "property_loss")
    expect(config, PropertyLossConfig, "property_loss takes a PropertyLossConfig second", "It names the targets.")
    how = dataclasses.replace(config.relax, adjoint=Implicit())  # which keeps nothing of the way
    at = PropertyConfig(cell=how.cell, fmax=max(how.fmax, 1e-12))
    size = {"squared": jnp.square, "absolute": lambda x: jnp.sqrt(1 + x * x) - 1}[config.error]
    pressure = 0.0 if how.cell is None else how.cell.pressure
    elastic = bool(ELASTIC & {target.name for target in config.targets})

    def one(params, system, lists):
        """Properties of one relaxed structure by name, and whether it is stable and converged."""
        minimum = properties.at_minimum(potential, params, system, lists, at)
        here = properties.lattice_at(minimum)
        n_atoms = jnp.maximum(jnp.sum(real(system)), 1)
        values = {"volume": here.volume, "volume_per_atom": here.volume / n_atoms}
        values |= {"density": here.density, "lengths": here.lengths}
        stable = jnp.ones((), bool)
        if elastic:
            found = properties.elastic_at(potential, params, minimum, pressure)
            values |= {"bulk_modulus": found.bulk, "shear_modulus": found.shear}
            values |= {"young_modulus": found.young, "elastic_tensor": found.tensor}
            stable = found.stable
        return {target.name: values[target.name] for target in config.targets}, stable, here.converged

    def loss(params, batch: PropertyBatch, lr_ratio=1.0):
        _check(batch, PropertyBatch, "property_loss", "losses.property_batch makes one of structures and targets.")
        still = jax.lax.stop_gradient
        end = still(relax(potential, still(params), batch.start, batch.neighbors, how))
        lists = jax.vmap(lambda n, s: neighbor_lists.update(n, s, potential.shells))(batch.neighbors, end.system)
        kept = end.converged & ~lists.overflow & jnp.any(real(batch.start), axis=-1)
        donor = jnp.argmax(kept)  # stands in for what is left out, so that no NaN reaches a gradient
        crystals = pytree.where(kept, (end.system, lists), pytree.take((end.system, lists), donor))

        def judged(params):
            values, stable, settled = jax.vmap(lambda s, n: one(params, s, n))(*crystals)
            return *_compared(values, batch, kept & settled, config, size), stable, kept & settled

        shapes = jax.eval_shape(judged, params)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, metrics, stable, kept = jax.lax.cond(jnp.any(kept), judged, lambda params: nothing, params)
        present = jnp.any(real(batch.start), axis=-1)
        return total, metrics | {
            "n_structures": jnp.sum(kept),
            "n_dropped": jnp.sum(present & ~kept),
            "n_unstable": jnp.sum(kept & ~stable),
            "n_steps": jnp.sum(jnp.where(kept, end.n_steps, 0)) / jnp.maximum(jnp.sum(kept), 1),
        }

    return loss


def _compared(values: dict, batch: PropertyBatch, kept, config: PropertyLossConfig, size: Callable):
    """The mean over the kept structures, and the mean absolute error of each property in its first unit."""
    total, metrics = 0.0, {}
    for target in config.targets:
        weight = jnp.where(kept, batch.weights[target.name], 0)
        known = (weight > 0).reshape(-1, *[1] * len(SHAPES.get(target.name, ())))
        error = jnp.where(known, values[target.name] - batch.targets[target.name], 0)
        axes = tuple(range(1, error.ndim))
        total = total + target.weight * jnp.sum(weight * jnp.mean(size(error / target.scale), axis=axes))
        number = jnp.maximum(jnp.sum(weight > 0), 1)
        metrics[f"{target.name}_mae"] = jnp.sum(jnp.mean(jnp.abs(jax.lax.stop_gradient(error)), axis=axes)) / number
    return total / jnp.maximum(jnp.sum(kept), 1), metrics


# ---- force constants


class ForceConstantBatch(NamedTuple):
    """Some directions of the Hessian of structures, at the structures themselves. Leading axis of structures."""

    system: System
    neighbors: Neighbors
    directions: Float[Array, "n_batch n_directions n_atoms 3"]  # displacements of norm 1
    products: Float[Array, "n_batch n_directions n_atoms 3"]  # Φ v (eV/Å²)


def sampled_columns(
    constants: Float[np.ndarray, "n_rows n_super 3 3"], rows: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n n_super 3"], Float[np.ndarray, "n n_super 3"]]:
    """`n` directions at random among the atoms `rows` and components whose force constants are known, and Φ v of each.

    On the host; `constants` (eV/Å²) as `properties.force_constants` and phonopy's compact format have them.
    """
    constants = np.asarray(constants)
    if constants.ndim != 4 or constants.shape[2:] != (3, 3) or len(constants) != len(rows):
        raise ValueError(f"Force constants have shape {constants.shape}; expected ({len(rows)}, n_super, 3, 3).")
    chosen = rng.choice(3 * len(rows), size=n, replace=n > 3 * len(rows))
    directions = np.zeros((n, constants.shape[1], 3))
    directions[np.arange(n), np.asarray(rows)[chosen // 3], chosen % 3] = 1
    return directions, constants[chosen // 3, :, chosen % 3]


@factory
def force_constant_loss(potential) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)`: mean square of (H v - Φ v) per atom, in (eV/Å²)².

    The batch is a `ForceConstantBatch`: products of the reference's force constants with some directions, at the
    reference's own structure, as in the phonon fine-tuning of arXiv 2601.07742. A product costs about three evaluations
    of the forces. Rows without atoms do not count.
    """
    check_potential(potential, "force_constant_loss")

    def one(params, system, lists, directions, products):
        found = properties.hessian_products(potential, params, system, lists, directions)
        error = jnp.where(real(system)[:, None], found - products, 0)
        return jnp.mean(jnp.sum(error**2, axis=(1, 2))) / jnp.maximum(jnp.sum(real(system)), 1)

    def loss(params, batch: ForceConstantBatch, lr_ratio=1.0):
        _check(batch, ForceConstantBatch, "force_constant_loss", "losses.sampled_columns gives its columns.")
        present = jnp.any(real(batch.system), axis=-1)
        each = jax.vmap(lambda *x: one(params, *x))(*batch)
        value = jnp.sum(jnp.where(present, each, 0)) / jnp.maximum(jnp.sum(present), 1)
        root = jnp.sqrt(jax.lax.stop_gradient(value) / 3)
        return value, {"force_constant_rmse": root, "n_structures": jnp.sum(present)}

    return loss


def _check(batch, kind: type, name: str, remedy: str) -> None:
    if not isinstance(batch, kind):
        raise ArgumentError(f"{name} takes a {kind.__name__}, got {describe(batch)}. {remedy}")
