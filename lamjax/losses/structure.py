"""A loss of where relaxations end, which trains the potential (and the minimiser) through the relaxation."""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree
from pydantic import Field

from lamjax import neighbors as neighbor_lists
from lamjax.arguments import ArgumentError, describe, expect
from lamjax.config import configuration
from lamjax.data import StructureBatch
from lamjax.factories import factory
from lamjax.losses.geometry import StructureError, structure_error
from lamjax.potential import Potential, check_potential
from lamjax.relaxation import Relaxation, RelaxConfig, Unrolled, implicit, minimiser, relax
from lamjax.relaxation.adjoints import is_of_the_end
from lamjax.relaxation.implicit import Point
from lamjax.relaxation.steps import Weights
from lamjax.relaxation.surface import over
from lamjax.system import System, real


@configuration
class DistanceConfig:
    """The distance of a structure from its target, as one number.

    `kind`: "dq" the mass-weighted distance (amu^1/2 Å), "rmsd" (Å), "squared" dq²; "bounded" dq/(scale + dq), which
    keeps the huge gradients next to a switch of basins from deciding a batch.
    """

    kind: Literal["dq", "rmsd", "squared", "bounded"] = "dq"
    scale: Annotated[float, Field(gt=0, description='amu^1/2 Å, where "bounded" is one half')] = 1.0
    cell: Annotated[
        float, Field(ge=0, description="weight of the strain between the cells, added to the distance of the atoms")
    ] = 0.0


@configuration
class StructureLossConfig:
    """Settings of the structure loss: the relaxation, and the distance of its end from the target."""

    relax: RelaxConfig = field(default_factory=lambda: RelaxConfig(adjoint=Unrolled(50)))
    distance: DistanceConfig = DistanceConfig()
    window: Annotated[
        float, Field(description="weight of the distance at the end of the window of the adjoint Hybrid")
    ] = 1.0
    energy: Annotated[
        float, Field(description="weight (atoms/eV) of |E - label| per atom at the end, where the target has an energy")
    ] = 0.0
    max_motion: Annotated[
        float,
        Field(description="Å; a structure with an atom that moved farther from its start is left out and counted"),
    ] = 10.0
    type: Literal["structure"] = "structure"


class Learned(NamedTuple):
    """Parameters of a loss that learns the numbers of the minimiser too."""

    potential: Any
    minimiser: dict[str, Array]


def with_minimiser(params: PyTree, config: RelaxConfig, dtype: DTypeLike | None = None) -> Learned:
    """The parameters, and beside them the learnable numbers of the config's minimiser: step sizes, mixing, bias."""
    return Learned(params, minimiser(config.minimiser).numbers(jnp.zeros((), dtype or float).dtype))


@factory
def structure_loss(potential: Potential, config: StructureLossConfig | None = None) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of relaxing `batch.start` towards `batch.target`.

    The batch is a `data.StructureBatch`; params are the potential's, or `Learned`. The scalar is the mean over its
    structures; rows without atoms do not count, and structures whose relaxation became infinite, NaN or exploded are
    left out of value and gradient and counted in the metrics (means and a median over those that count; the numbers n_*
    are sums). With an adjoint of the end (Implicit, Hybrid) a structure that did not come below `gate` has a value but
    no implicit gradient (n_gated), and one where the curvature was not positive a truncated one (n_negative).
    Dramko et al., arXiv 2512.01067.
    """
    check_potential(potential, "structure_loss")
    config = StructureLossConfig() if config is None else config
    remedy = "A RelaxConfig goes into it: StructureLossConfig(relax=RelaxConfig(...))."
    expect(config, StructureLossConfig, "structure_loss takes a StructureLossConfig second", remedy)
    by_adjoint = _at_minimum if is_of_the_end(config.relax.adjoint) else _on_the_way

    def loss(
        params: PyTree, batch: StructureBatch, lr_ratio: float | Array = 1.0
    ) -> tuple[Array, dict]:  # the ratio is for losses whose weights follow the learning rate
        check_pairs(batch)
        learned = params if isinstance(params, Learned) else Learned(params, {})
        return by_adjoint(potential, learned, batch, config)

    return loss


def check_pairs(batch: Any) -> None:
    """ArgumentError unless the batch holds starts and targets."""
    if not hasattr(batch, "start") or not hasattr(batch, "target"):
        raise ArgumentError(
            f"A loss of structures takes a batch of starts and targets, got {describe(batch)}. Batches come from "
            "data.pair_batches(packed, batch_size), and packed is data.pack_pairs(pairs, potential.shells)."
        )


def distance(error: StructureError, config: DistanceConfig) -> Float[Array, "*batch"]:
    """The distance between structure and target that a config asks for."""
    base = error.rmsd if config.kind == "rmsd" else error.dq
    return shaped(base + config.cell * error.strain if config.cell else base, config)


def shaped(distance: Float[Array, "*batch"], config: DistanceConfig) -> Float[Array, "*batch"]:
    """The distance, its square, or bounded by 1."""
    match config.kind:
        case "squared":
            return jnp.square(distance)
        case "bounded":
            return distance / (config.scale + distance)
    return distance


def _on_the_way(
    potential: Potential, learned: Learned, batch: StructureBatch, config: StructureLossConfig
) -> tuple[Array, dict]:
    """Value and metrics where the steps of the relaxation are differentiated."""
    relaxed = _relaxed(potential, learned, batch, config.relax)
    counted = _counted(relaxed, batch, config)
    each, error = _value(relaxed.system, relaxed.energy, batch, counted, config)
    return _with_window(
        mean(each, counted), _metrics(error, relaxed, counted, batch), relaxed.window, (batch, counted, config)
    )


def _at_minimum(
    potential: Potential, learned: Learned, batch: StructureBatch, config: StructureLossConfig
) -> tuple[Array, dict]:
    """Value and metrics where the minimum is differentiated: the linear solve is done here, and reported."""
    adjoint = config.relax.adjoint
    relaxed = _relaxed(potential, learned, batch, config.relax)
    end = jax.lax.stop_gradient(relaxed._replace(window=None))
    counted = _counted(end, batch, config)
    gate = getattr(adjoint, "gate", None)
    settled = counted & (end.fmax <= (config.relax.fmax if gate is None else gate)) & ~end.overflow
    surface, z = over(potential, batch.start, batch.fixed, config.relax.cell), end.coordinates
    lists = jax.vmap(lambda n, s: neighbor_lists.update(n, s, potential.shells))(batch.neighbors, end.system)
    energy = surface.energy(learned.potential, z, lists) if config.energy else jnp.zeros_like(end.energy)

    def value(z):
        moved = energy + jnp.sum(surface.energy_slope(end.coordinates) * (z - end.coordinates), (1, 2))
        return _value(surface.place(z), moved, batch, counted, config)

    (each, error), back = jax.vjp(value, z)
    (on_z,) = back((settled.astype(each.dtype) / _number(counted, each.dtype), jax.tree.map(jnp.zeros_like, error)))
    weights = Weights(learned.potential, {}, surface.reference.cell)
    zero, solve = implicit.tie(surface, weights, Point(z, end.energy, lists), on_z, adjoint)
    metrics = _metrics(error, end, counted, batch) | {
        "n_gated": jnp.sum(counted & ~settled),
        "n_negative": jnp.sum(settled & solve.negative),
        "iterations": mean(solve.iterations.astype(each.dtype), settled),
        "residual": jnp.max(jnp.where(settled, solve.residual, 0)),
    }
    return _with_window(
        mean(each, counted) + zero.astype(each.dtype), metrics, relaxed.window, (batch, counted, config)
    )


def _with_window(total: Float[Array, ""], metrics: dict, window: System | None, judged: tuple) -> tuple[Array, dict]:
    """Value and metrics with those of the structures at the end of a window, where the adjoint has one."""
    if window is None:
        return total, metrics
    batch, counted, config = judged
    each, error = _value(window, None, batch, counted, config)
    return total + config.window * mean(each, counted), metrics | {"dq_window": mean(error.dq, counted)}


def _relaxed(potential: Potential, learned: Learned, batch: StructureBatch, config: RelaxConfig) -> Relaxation:
    return relax(
        potential, learned.potential, batch.start, batch.neighbors, config, fixed=batch.fixed, numbers=learned.minimiser
    )


def _counted(relaxed: Relaxation, batch: StructureBatch, config: StructureLossConfig) -> Bool[Array, " n_batch"]:
    """Mask of the structures that count: with atoms, finite, and moved by less than `max_motion`."""
    moved = jax.lax.stop_gradient(relaxed.system.positions) - batch.start.positions
    farthest = jnp.sqrt(jnp.max(jnp.sum(moved * moved, axis=-1), axis=-1, initial=0))
    return jnp.any(real(batch.start), axis=-1) & relaxed.finite & (farthest <= config.max_motion)


def _value(
    system: System,
    energy: Float[Array, " n_batch"],
    batch: StructureBatch,
    counted: Bool[Array, " n_batch"],
    config: StructureLossConfig,
) -> tuple[Array, StructureError]:
    """The loss of each structure, and its errors; those that do not count are judged at their target.

    An energy of None does not count.
    """
    target = jax.tree.map(jnp.asarray, batch.target)
    system = system._replace(
        positions=jnp.where(counted[:, None, None], system.positions, target.positions),
        cell=jnp.where(counted[:, None, None], system.cell, target.cell),
    )
    error = structure_error(system, target, batch.fixed)
    each = distance(error, config.distance)
    if config.energy and energy is not None:
        n_atoms = jnp.maximum(jnp.sum(real(target), axis=-1), 1)
        off = jnp.abs(jnp.where(counted, energy - batch.labels.energy, 0)) / n_atoms
        each = each + config.energy * jnp.where(batch.labels.weights[:, 0] > 0, off, 0).astype(each.dtype)
    return each, error


def _number(counted: Bool[Array, " n_batch"], dtype: DTypeLike) -> Float[Array, ""]:
    return jnp.maximum(jnp.sum(counted), 1).astype(dtype)


def mean(x: Float[Array, " n_batch"], counted: Bool[Array, " n_batch"]) -> Float[Array, ""]:
    """The mean over the structures that count; 0 if none does."""
    return jnp.sum(jnp.where(counted, x, 0)) / _number(counted, x.dtype)


def _metrics(
    error: StructureError, relaxed: Relaxation, counted: Bool[Array, " n_batch"], batch: StructureBatch
) -> dict:
    present = jnp.any(real(batch.start), axis=-1)
    error, relaxed = jax.lax.stop_gradient((error, relaxed))
    return {
        "dq_mean": mean(error.dq, counted),
        "dq_median": _median(error.dq, counted),
        "rmsd": mean(error.rmsd, counted),
        "largest_displacement": jnp.max(jnp.where(counted, error.largest, 0)),
        "strain": mean(error.strain, counted),
        "fmax": mean(relaxed.fmax, counted),
        "n_steps": mean(relaxed.n_steps.astype(relaxed.fmax.dtype), counted),
        "converged": mean(relaxed.converged.astype(relaxed.fmax.dtype), counted),
        "n_structures": jnp.sum(counted),
        "n_dropped": jnp.sum(present & ~counted),
        "n_overflow": jnp.sum(present & relaxed.overflow),
    }


def _median(x: Float[Array, " n"], counted: Bool[Array, " n"]) -> Float[Array, ""]:
    """The median over the structures that count; 0 if none does."""
    ordered = jnp.sort(jnp.where(counted, jnp.ravel(x), jnp.inf))
    n = jnp.sum(counted)
    low, high = jnp.maximum(n - 1, 0) // 2, jnp.minimum(n // 2, len(ordered) - 1)
    return jnp.where(n > 0, (ordered[low] + ordered[high]) / 2, 0)
