"""Losses at the target structure itself: no relaxation, so no basin to miss and no number of steps."""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from pydantic import Field

from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.data import StructureBatch
from lamjax.factories import factory
from lamjax.losses.structure import DistanceConfig, check_pairs, mean, shaped
from lamjax.potential import Potential, check_potential
from lamjax.relaxation import CellConfig, Implicit, coordinates, implicit
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.surface import Surface, over
from lamjax.system import masses, real

NEWTON = Implicit(tol=1e-3, max_iterations=100, damping=0.5)


@configuration
class ForceTargetConfig:
    """Zero force at the target: the mean square of the force on an atom there (and on the cell, if it is relaxed)."""

    cell: Annotated[CellConfig | None, Field(description="None: the cell is fixed")] = None
    type: Literal["force"] = "force"


@configuration
class NewtonTargetConfig:
    """One Newton step from the target: where the minimum is, as far as the potential is a parabola.

    `solver` sets damping (eV/Å², added to the Hessian), tolerance and the guard against negative curvature.
    """

    cell: Annotated[CellConfig | None, Field(description="None: the cell is fixed")] = None
    distance: DistanceConfig = DistanceConfig(kind="bounded")
    solver: Implicit = NEWTON
    type: Literal["newton"] = "newton"

    def __post_init__(self) -> None:
        if self.distance.kind == "rmsd":
            raise ValueError('The Newton step is measured mass-weighted: take kind "dq", "squared" or "bounded".')


@factory
def target_force_loss(potential: Potential, config: ForceTargetConfig = ForceTargetConfig()) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)`, the mean of |F|² per atom at `batch.target`.

    In eV²/Å². A potential can make it small by becoming flat: mix in labels elsewhere (`weighted_sum`).
    """
    check_potential(potential, "target_force_loss")
    expect(config, ForceTargetConfig, "target_force_loss takes a ForceTargetConfig", "Leave it out for the defaults.")

    def loss(params: PyTree, batch: StructureBatch, lr_ratio: float | Array = 1.0) -> tuple[Array, dict]:
        surface, z, lists, present = _at_target(potential, batch, config.cell)
        force = surface.evaluate(params, z, lists).force
        n_atoms = jnp.maximum(jnp.sum(real(batch.target), axis=-1), 1)
        square = jnp.sum(force * force, axis=(1, 2)) / n_atoms
        return mean(square, present), {
            "force_rms": jnp.sqrt(mean(square, present)),
            "fmax": jnp.max(jnp.where(present, surface.largest(force), 0)),
            "n_structures": jnp.sum(present),
        }

    return loss


@factory
def newton_loss(potential: Potential, config: NewtonTargetConfig = NewtonTargetConfig()) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of the distance |(H + δ)⁻¹ F|_M at `batch.target`.

    The first-order distance (amu^1/2 Å) from the target to the minimum of the potential. Unlike |F|², it does not
    become smaller when the whole surface is made flat. Where a direction of the curvature is negative the damping is
    raised tenfold until none is (n_damped); structures where that does not help are left out (n_negative).
    """
    check_potential(potential, "newton_loss")
    expect(config, NewtonTargetConfig, "newton_loss takes a NewtonTargetConfig", "Leave it out for the defaults.")

    def loss(params: PyTree, batch: StructureBatch, lr_ratio: float | Array = 1.0) -> tuple[Array, dict]:
        surface, z, lists, present = _at_target(potential, batch, config.cell)
        mass = _row_masses(surface, config.distance.cell)
        still = jax.lax.stop_gradient(params)
        force = surface.evaluate(still, z, lists).force
        force = jnp.where(present[:, None, None], force, 0)
        hessian = implicit.hessian(surface, still, z, lists)
        step, report, damping = implicit.enough_damping(hessian, force, config.solver)
        n_negative, present = jnp.sum(present & report.negative), present & ~report.negative
        size = jnp.sqrt(jnp.sum(mass * step * step, axis=(1, 2)))
        value, back = jax.vjp(lambda size: shaped(size, config.distance), size)
        (on_size,) = back(present / jnp.maximum(jnp.sum(present), 1).astype(size.dtype))
        on_step = (on_size / jnp.where(size > 0, size, 1))[:, None, None] * mass * step
        back_step, _ = implicit.solve(hessian, on_step, config.solver, damping)
        tied = _tie(params, surface, (z, lists), step, back_step)
        return mean(value, present) + tied, {
            "newton_dq": mean(size, present),
            "iterations": mean(report.iterations.astype(size.dtype), present),
            "n_damped": jnp.sum(present & (damping > config.solver.damping)),
            "n_negative": n_negative,
            "n_structures": jnp.sum(present),
        }

    return loss


def _tie(params: PyTree, surface: Surface, at: tuple, step: BatchRows, back: BatchRows) -> Float[Array, ""]:
    """0, with the derivative μᵀ (∂F/∂θ - ∂H/∂θ s) of a loss of s, (H + δ) s = F and (H + δ) μ = ∂L/∂s.

    s is the `step`, μ is `back`, both `at` coordinates and their neighbours.
    """

    def slope(params, constants):
        z, step, back, surface, lists = constants

        def along(z):
            return jnp.sum(surface.slope(params, z, lists, back))

        value, change = jax.jvp(along, (z,), (step,))
        return -(value + change).astype(z.dtype)

    z, lists = at
    return implicit.derivative_alone(slope, params, (z, step, back, surface, lists))


def _at_target(potential, batch, cell: CellConfig | None):
    """Surface, coordinates and neighbours of the targets, and which rows hold atoms."""
    check_pairs(batch)
    target, lists = jax.tree.map(jnp.asarray, (batch.target, batch.target_neighbors))
    surface = over(potential, target, batch.fixed, cell)
    return surface, surface.start(), lists, jnp.any(real(target), axis=-1)


def _row_masses(surface: Surface, cell_weight: float) -> Float[Array, "n_batch rows 1"]:
    """amu for rows of atoms; for those of the strain what gives |strain| the weight of the distance."""
    mass = masses(surface.reference)
    scale = jax.vmap(coordinates.scale)(surface.reference)
    strain = jnp.repeat((cell_weight / scale)[:, None] ** 2, 3, axis=1)
    return jnp.concatenate([mass, strain], axis=1)[..., None]
