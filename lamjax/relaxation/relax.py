"""One relaxation, or a batch side by side, at fixed or variable cell, and the gradient of where it ends."""

from dataclasses import field
from typing import Annotated, NamedTuple

import ase
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import Field

from lamjax import pytree, summaries
from lamjax.arguments import renamed
from lamjax.config import configuration
from lamjax.neighbors import Neighbors, check_shells
from lamjax.neighbors.verlet import SKIN
from lamjax.potential import Potential
from lamjax.relaxation import captured, implicit
from lamjax.relaxation.adjoints import Adjoint, AdjointMethods, UntilConverged, check_adjoint, is_of_the_end
from lamjax.relaxation.coordinates import CellConfig
from lamjax.relaxation.descent import Descent, begin
from lamjax.relaxation.layouts import Padded
from lamjax.relaxation.minimisers import FireConfig, MinimiserConfig, minimiser
from lamjax.relaxation.steps import Progress, Steps, Weights
from lamjax.relaxation.surface import Surface, over
from lamjax.system import System, as_system, fixed_mask, kept_by_constraints


@configuration
class RelaxConfig:
    """When a relaxation ends, what moves and how, and how it is differentiated."""

    fmax: Annotated[
        float,
        Field(
            ge=0,
            description="eV/Å: converged when no force on an atom, nor on the cell (-dE/dstrain per atom, as in ASE), "
            "is larger",
        ),
    ] = 0.02
    max_steps: Annotated[int, Field(ge=0, description="of all adjoints but Unrolled, which has its own number")] = 500
    cell: Annotated[CellConfig | None, Field(description="None: the cell is fixed")] = None
    minimiser: Annotated[
        MinimiserConfig, Field(description="how steps are taken: fire, lbfgs, or gradient_flow {eta, additive}")
    ] = field(default_factory=FireConfig)
    adjoint: Annotated[
        Adjoint,
        Field(
            description="how the end is differentiated: unrolled {steps, segment}, until_converged {max_steps, "
            "checkpoints}, implicit {tol, gate, polish, ...}, hybrid {window, implicit}"
        ),
    ] = field(default_factory=UntilConverged)
    skin: Annotated[
        float,
        Field(ge=0, description="Å; neighbours are searched anew when an atom (or the cell) has moved by half of it"),
    ] = SKIN


class Relaxation(NamedTuple):
    """The end of a relaxation, and how it went; with a leading axis for a batch."""

    system: System
    energy: Float[Array, "*batch"]  # eV, without PV
    forces: Float[Array, "*batch n_atoms 3"]  # eV/Å, 0 where an atom is fixed
    virial: Float[Array, "*batch 3 3"]  # eV, -dE/dstrain
    fmax: Float[Array, "*batch"]  # eV/Å, the largest force on an atom that moves, or on the cell
    n_steps: Int[Array, "*batch"]  # steps taken until it converged, failed, or the steps ran out
    converged: Bool[Array, "*batch"]  # fmax <= config.fmax with a complete neighbour list
    finite: Bool[Array, "*batch"]  # False: energy or forces became infinite or NaN; this is the last state before
    overflow: Bool[Array, "*batch"]  # neighbours were missing on the way: grow the list and relax again
    truncated: Bool[Array, "*batch"]  # the model's own `sel` dropped neighbours on the way
    largest_counts: Int[Array, "*batch n_shells"]  # the most neighbours that an atom had on the way, within each shell
    coordinates: Float[Array, "*batch rows 3"]  # Å, where it ended, as `relaxation.coordinates` counts
    window: System | None = None  # of the adjoint Hybrid: where its window ended

    found = renamed("found", "largest_counts")

    def __repr__(self) -> str:
        return summaries.of_relaxation(self)


def relax(
    potential: Potential,
    params: PyTree,
    system: System | ase.Atoms,
    neighbors: Neighbors,
    config: RelaxConfig | None = None,
    *,
    fixed: Bool[Array, "*batch n_atoms 3"] | None = None,
    numbers: dict[str, Array] | None = None,
) -> Relaxation:
    """The structure moved downhill until no force exceeds `config.fmax`. Pure: jit it outside.

    A batch (leading axis) is relaxed side by side, each structure with its own time step and stopping. Neighbours are
    searched on the way as they are needed, in the shapes of `neighbors`; `overflow` tells that these were too small
    (`relax_structures` then grows them). Components that are True in `fixed` do not move (with a relaxing cell they
    keep their place in it); a flag an atom holds all three, and without `fixed` the constraints of an ase.Atoms count.
    `numbers` replaces numbers of the minimiser's config by traced ones (`minimiser.numbers`).

    How the result (system, energy, forces) is differentiated with respect to params, numbers, positions and cell is
    chosen by `config.adjoint`.
    """
    config = RelaxConfig() if config is None else config
    if fixed is None and isinstance(system, ase.Atoms):
        fixed = kept_by_constraints(system)
    start, neighbors = jax.tree.map(jnp.asarray, (as_system(system), neighbors))
    fixed = None if fixed is None else fixed_mask(fixed, start.numbers)
    if start.positions.ndim == 3:
        return _relax(over(potential, start, fixed, config.cell), params, neighbors, config, numbers)
    start, neighbors, fixed = jax.tree.map(lambda x: jnp.asarray(x)[None], (start, neighbors, fixed))
    return pytree.take(_relax(over(potential, start, fixed, config.cell), params, neighbors, config, numbers), 0)


def _relax(
    surface: Surface, params: PyTree, neighbors: Neighbors, config: RelaxConfig, numbers: dict[str, Array] | None
) -> Relaxation:
    """The references of a surface relaxed."""
    check_shells(neighbors, surface.potential.shells, anew=True)
    check_adjoint(config.adjoint)
    method, start, cells = minimiser(config.minimiser), surface.start(), surface.reference.cell
    surface = jax.lax.stop_gradient(surface)
    layout = Padded(neighbors.capacities, config.skin)
    lists = layout.empty(surface, neighbors)
    surface, params = captured.explicit(surface, params, layout, lists)
    weights = Weights(params, method.numbers(start.dtype) | (numbers or {}), cells)
    descent = begin(Steps(method, layout, config.fmax), surface, weights, (start, lists), config.max_steps)
    end = config.adjoint.run(descent)
    if is_of_the_end(config.adjoint):
        end = _at_minimum(end, config.adjoint)
    return result(surface.with_cells(weights.cells), end.state, end.steps)._replace(window=end.window)


def _at_minimum(end: Descent, adjoint: AdjointMethods) -> Descent:
    """The end of a descent with the derivatives of a minimum."""
    end = end._replace(state=jax.lax.stop_gradient(end.state))
    settled = end.is_settled(getattr(adjoint, "gate", None))
    lists = end.steps.layout.refresh(end.surface, end.lists, end.state.z)
    neighbors = end.steps.layout.neighbors(end.surface, lists, end.state.z)
    point = implicit.Point(end.state.z, end.state.energy, neighbors)
    return end.at(*implicit.at_minimum(end.surface, end.weights, point, settled, adjoint))


def result(surface: Surface, state: Progress, steps: Steps) -> Relaxation:
    """The relaxations of a batch, from the state of its last step."""
    return Relaxation(
        system=surface.place(state.z),
        energy=state.energy,
        forces=surface.atomic_forces(state.z, state.evaluation.force),
        virial=jax.lax.stop_gradient(state.virial),
        fmax=state.fmax,
        n_steps=jnp.maximum(state.n_steps, 0),
        converged=state.finite & (state.fmax <= steps.threshold(state.fmax.dtype)) & ~state.overflow,
        finite=state.finite,
        overflow=state.overflow,
        truncated=state.truncated,
        largest_counts=state.largest_counts,
        coordinates=state.z,
    )
