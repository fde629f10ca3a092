"""Losses at the target structure itself: no relaxation, so no basin to miss and no number of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lamjax.arguments import expect
from lamjax.factories import factory
from lamjax.losses.structure import DistanceConfig, check_pairs, mean, shaped
from lamjax.potential import check_potential
from lamjax.relaxation import CellConfig, Implicit, coordinates, implicit, landscape
from lamjax.relaxation.landscape import Landscape
from lamjax.system import masses, real

NEWTON = Implicit(tol=1e-3, max_iterations=100, damping=0.5)


@dataclass(frozen=True)
class ForceTargetConfig:
    """Zero force at the target: the mean square of the force on an atom there (and on the cell, if it is relaxed)."""

    cell: CellConfig | None = None
    type: Literal["force"] = "force"
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class NewtonTargetConfig:
    """One Newton step from the target: where the minimum is, as far as the potential is a parabola.

    `solver` sets damping (eV/Å², added to the Hessian), tolerance and the guard against negative curvature.
    """

    cell: CellConfig | None = None
    distance: DistanceConfig = DistanceConfig(kind="bounded")
    solver: Implicit = NEWTON
    type: Literal["newton"] = "newton"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.distance.kind == "rmsd":
            raise ValueError('The Newton step is measured mass-weighted: take kind "dq", "squared" or "bounded".')


@factory
def target_force_loss(potential, config: ForceTargetConfig = ForceTargetConfig()) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)`, the mean of |F|² per atom at `batch.target`.

    In eV²/Å². A potential can make it small by becoming flat: mix in labels elsewhere (`weighted_sum`).
    """
    check_potential(potential, "target_force_loss")
    expect(config, ForceTargetConfig, "target_force_loss takes a ForceTargetConfig", "Leave it out for the defaults.")

    def loss(params, batch, lr_ratio=1.0):
        there, z, lists, present = _at_target(potential, batch, config.cell)
        force = landscape.evaluate(potential, params, there, z, lists, config.cell).force
        n_atoms = jnp.maximum(jnp.sum(real(batch.target), axis=-1), 1)
        square = jnp.sum(force * force, axis=(1, 2)) / n_atoms
        return mean(square, present), {
            "force_rms": jnp.sqrt(mean(square, present)),
            "fmax": jnp.max(jnp.where(present, landscape.largest(there, force), 0)),
            "n_structures": jnp.sum(present),
        }

    return loss


@factory
def newton_loss(potential, config: NewtonTargetConfig = NewtonTargetConfig()) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of the distance |(H + δ)⁻¹ F|_M at `batch.target`.

    The first-order distance (amu^1/2 Å) from the target to the minimum of the potential. Unlike |F|², it does not
    become smaller when the whole surface is made flat. Where a direction of the curvature is negative the damping is
    raised tenfold until none is (n_damped); structures where that does not help are left out (n_negative).
    """
    check_potential(potential, "newton_loss")
    expect(config, NewtonTargetConfig, "newton_loss takes a NewtonTargetConfig", "Leave it out for the defaults.")

    def loss(params, batch, lr_ratio=1.0):
        there, z, lists, present = _at_target(potential, batch, config.cell)
        mass = _row_masses(there, config.distance.cell)
        still = jax.lax.stop_gradient(params)
        force = landscape.evaluate(potential, still, there, z, lists, config.cell).force
        force = jnp.where(present[:, None, None], force, 0)
        surface = potential, still, there, z, lists, config.cell
        step, report, damping = implicit.enough_damping(*surface, force, config.solver)
        present, found = present & ~report.negative, present
        size = jnp.sqrt(jnp.sum(mass * step * step, axis=(1, 2)))
        value, back = jax.vjp(lambda size: shaped(size, config.distance), size)
        (on_size,) = back(present / jnp.maximum(jnp.sum(present), 1).astype(size.dtype))
        on_step = (on_size / jnp.where(size > 0, size, 1))[:, None, None] * mass * step
        back_step, _ = implicit.solve(*surface, on_step, config.solver, damping)
        tied = _tie(potential, params, there, z, lists, config, step, back_step)
        return mean(value, present) + tied, {
            "newton_dq": mean(size, present),
            "iterations": mean(report.iterations.astype(size.dtype), present),
            "n_damped": jnp.sum(present & (damping > config.solver.damping)),
            "n_negative": jnp.sum(found & report.negative),
            "n_structures": jnp.sum(present),
        }

    return loss


def _tie(potential, params, there: Landscape, z, lists, config: NewtonTargetConfig, step, back) -> Float[Array, ""]:
    """0, with the derivative μᵀ (∂F/∂θ - ∂H/∂θ s) of a loss of s, (H + δ) s = F and (H + δ) μ = ∂L/∂s."""

    def slope(params, constants):
        z, step, back, there, lists = constants

        def along(z):
            return jnp.sum(landscape.slope(potential, params, there, z, lists, config.cell, back))

        value, change = jax.jvp(along, (z,), (step,))
        return -(value + change).astype(z.dtype)

    return implicit.derivative_alone(slope, params, (z, step, back, there, lists))


def _at_target(potential, batch, cell: CellConfig | None):
    """Landscape, coordinates and neighbours of the targets, and which rows hold atoms."""
    check_pairs(batch)
    target, lists = jax.tree.map(jnp.asarray, (batch.target, batch.target_neighbors))
    there = landscape.over(target, batch.fixed, cell)
    return there, jax.vmap(coordinates.start)(target), lists, jnp.any(real(target), axis=-1)


def _row_masses(there: Landscape, cell_weight: float) -> Float[Array, "n_batch rows 1"]:
    """amu for rows of atoms; for those of the strain what gives |strain| the weight of the distance."""
    mass = masses(there.reference)
    scale = jax.vmap(coordinates.scale)(there.reference)
    strain = jnp.repeat((cell_weight / scale)[:, None] ** 2, 3, axis=1)
    return jnp.concatenate([mass, strain], axis=1)[..., None]
