"""First-order saddles: found by following the softest mode uphill, and differentiated where they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import Field

from lamjax import pytree
from lamjax.arguments import expect
from lamjax.config import configuration
from lamjax.neighbors import Neighbors, check_shells
from lamjax.neighbors.verlet import SKIN
from lamjax.potential import Potential
from lamjax.relaxation import implicit
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.implicit import Hessian, Implicit, Point, Solve
from lamjax.relaxation.layouts import Padded
from lamjax.relaxation.minimisers import FireConfig, MinimiserConfig, minimiser
from lamjax.relaxation.steps import Weights
from lamjax.relaxation.surface import Surface, over
from lamjax.system import System, as_system, check_single, fixed_mask

RESPONSE = Implicit(tol=1e-9, max_iterations=1000, curvature=1e-6)
MODES = 40  # directions among which the lowest curvatures of a saddle are sought


@configuration
class DimerConfig:
    """Settings of the dimer method."""

    fmax: Annotated[float, Field(gt=0, description="eV/Å")] = 0.02
    max_steps: Annotated[int, Field(ge=0)] = 500
    turns: Annotated[int, Field(ge=2, description="Hessian products a step, by which the softest mode is followed")] = 6
    minimiser: MinimiserConfig = field(default_factory=FireConfig)
    skin: Annotated[float, Field(ge=0, description="Å")] = SKIN


class Climb(NamedTuple):
    """The end of a dimer search, and how it went."""

    system: System
    energy: Float[Array, ""]  # eV
    fmax: Float[Array, ""]  # eV/Å
    mode: Float[Array, "n_atoms 3"]  # the softest one, of norm 1
    curvature: Float[Array, ""]  # eV/Å², along it; negative at a saddle
    n_steps: Int[Array, ""]
    converged: Bool[Array, ""]  # fmax <= config.fmax, and the curvature is negative
    overflow: Bool[Array, ""]


class Saddle(NamedTuple):
    """A saddle; system and energy have its derivatives by the parameters."""

    system: System
    energy: Float[Array, ""]  # eV
    fmax: Float[Array, ""]  # eV/Å
    curvatures: Float[Array, "2"]  # eV/Å², the two lowest (Ritz values), without rigid motions
    is_saddle: Bool[Array, ""]  # exactly one of them is negative
    converged: Bool[Array, ""]  # fmax <= the limit, and it is a saddle: else derivatives are 0


@dataclass(frozen=True)
class Indefinite:
    """The response of a saddle, where negative curvature is in order: by minimal residuals."""

    rule: Implicit

    def respond(self, hessian: Hessian, cotangent: BatchRows) -> tuple[Array, Solve]:
        """λ of H λ = `cotangent`."""
        return implicit.solve(hessian, cotangent, self.rule, method=implicit.minimal_residuals)


def dimer(
    potential: Potential,
    params: PyTree,
    system: System,
    neighbors: Neighbors,
    config: DimerConfig = DimerConfig(),
    *,
    mode: Float[Array, "n_atoms 3"],
    fixed: Bool[Array, "n_atoms 3"] | None = None,
) -> Climb:
    """A saddle near a structure, climbed to along its softest mode, from the guess `mode` on. Pure: jit it outside.

    The force along the mode is reversed, and alone counts while the curvature is positive; the mode is followed with
    exact Hessian products where the dimer of Henkelman and Jónsson (J. Chem. Phys. 111, 7010, 1999) takes differences.
    The cell is fixed.
    """
    expect(config, DimerConfig, "dimer takes a DimerConfig", "Leave it out for the defaults.")
    surface, neighbors = _as_batch(potential, system, neighbors, fixed)
    params, z, layout = jax.lax.stop_gradient(params), surface.start(), Padded(neighbors.capacities, config.skin)
    method = minimiser(config.minimiser)
    numbers, kinds = method.numbers(z.dtype), surface.reference.numbers[0]

    def continues(carry: tuple) -> Bool[Array, ""]:
        _, _, _, fmax, _, curvature, k, _ = carry
        return ((fmax > config.fmax) | (curvature >= 0)) & (k <= config.max_steps) & ~jnp.isnan(fmax)

    def step(carry: tuple) -> tuple:
        walker, lists, _, _, mode, _, k, overflow = carry
        first = k == 0
        proposed = jnp.where(first, z, method.propose(numbers, walker, kinds)[None])
        lists = layout.refresh(surface, lists, proposed)
        near = layout.neighbors(surface, lists, proposed)
        evaluation = surface.evaluate(params, proposed, near)
        values, modes = lowest(_product(surface, params, proposed, near), mode, config.turns)
        mode, curvature = modes[0], values[0]
        along = jnp.sum(evaluation.force * mode) * mode
        force = jnp.where(curvature < 0, evaluation.force - 2 * along, -along)[0]
        walker = pytree.where(
            first, method.init(numbers, proposed[0], force), method.step(numbers, walker, proposed[0], force)
        )
        fmax = surface.largest(evaluation.force)[0]
        return walker, lists, evaluation.energy[0], fmax, mode, curvature, k + 1, overflow | near.overflow[0]

    lists = layout.empty(surface, neighbors)
    guess = _first_mode(surface, z, mode)
    zero = jnp.zeros((), z.dtype)
    start = (method.init(numbers, z[0], jnp.zeros_like(z[0])), lists, jnp.zeros((), float), zero + jnp.inf, guess)
    end = jax.lax.while_loop(continues, step, (*start, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool)))
    walker, _, energy, fmax, mode, curvature, k, overflow = end
    placed = pytree.take(surface.place(walker.position[None]), 0)
    done = (fmax <= config.fmax) & (curvature < 0) & ~overflow
    return Climb(placed, energy, fmax, mode[0, :-3], curvature, jnp.maximum(k - 1, 0), done, overflow)


def _first_mode(surface: Surface, z: BatchRows, mode: Float[Array, "n_atoms 3"]) -> BatchRows:
    """The guess of a mode, of norm 1, without rigid motions and fixed atoms; ValueError if nothing of it is left."""
    expected = (z.shape[1] - 3, 3)
    if np.shape(mode) != expected:
        raise ValueError(f"mode has shape {np.shape(mode)}; expected {expected}, a displacement of each atom.")
    given = jnp.zeros_like(z).at[0, :-3].set(jnp.asarray(mode, z.dtype))
    guess = implicit.rigid_motions(surface, z)(surface.project(given))
    size, whole = jnp.sqrt(jnp.sum(guess**2)), jnp.sqrt(jnp.sum(given**2))
    if not isinstance(size, Tracer) and not 1e-5 * whole < size < jnp.inf:
        raise ValueError(
            f"mode has the norm {float(whole):.3g}, of which {float(size):.3g} moves free atoms against one another: "
            "no direction to climb along. Take the difference of two images of a band, or displacements at random."
        )
    return guess / size


def at_saddle(
    potential: Potential,
    params: PyTree,
    system: System,
    neighbors: Neighbors,
    *,
    fixed: Bool[Array, "n_atoms 3"] | None = None,
    fmax: float = 1e-3,
    response: Implicit = RESPONSE,
) -> Saddle:
    """A saddle with the derivatives of its place and energy by the parameters: dx/dθ = -H⁻¹ ∂²E/∂x∂θ, H indefinite.

    Solved by minimal residuals. `system` is where `neb` or `dimer` ended, `neighbors` its list. A barrier is the
    difference of two energies, of this and of `relax` with the adjoint Implicit; its derivative needs no solve. Pure.
    """
    surface, lists = _as_batch(potential, system, neighbors, fixed)
    still, z = jax.lax.stop_gradient(params), surface.start()
    evaluation = surface.evaluate(still, z, lists)
    force = surface.largest(evaluation.force)[0]
    rows = jnp.sin(1.0 + 7.3 * jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)  # a direction that is in no symmetry
    guess = implicit.rigid_motions(surface, z)(surface.project(rows))
    values, _ = lowest(_product(surface, still, z, lists), guess / jnp.sqrt(jnp.sum(guess**2)), MODES)
    is_saddle = (values[0] < 0) & (values[1] > 0)
    converged = is_saddle & (force <= fmax) & evaluation.is_usable()[0] & ~lists.overflow[0]
    weights = Weights(params, {}, surface.reference.cell)
    point = Point(z, evaluation.energy, lists)
    z, energy = implicit.at_minimum(surface, weights, point, converged[None], Indefinite(response))
    placed = pytree.take(surface.place(z), 0)
    return Saddle(placed, energy[0], force, values, is_saddle, converged)


def lowest(
    product: Callable, start: Float[Array, "1 rows 3"], n: int
) -> tuple[Float[Array, "2"], Float[Array, "2 1 rows 3"]]:
    """The two lowest eigenvalues of a symmetric operator and their vectors, among `n` Krylov directions from `start`.

    Lanczos, each direction orthogonal to all before it. Directions beyond the space count as infinitely stiff.
    """

    def step(k: Int[Array, ""], carry: tuple) -> tuple:
        basis, images = carry
        image = product(basis[k])
        new = image
        for _ in range(2):
            new = new - jnp.einsum("k,k...->...", jnp.einsum("k...,...->k", basis, new), basis)
        size = jnp.sqrt(jnp.sum(new**2))
        inside = size > 1e-10 * jnp.sqrt(jnp.sum(image**2))
        new = jnp.where(inside, new / jnp.where(inside, size, 1), 0)
        return basis.at[k + 1].set(new, mode="drop"), images.at[k].set(image)

    basis = jnp.zeros((n, *start.shape), start.dtype).at[0].set(start)
    basis, images = jax.lax.fori_loop(0, n, step, (basis, jnp.zeros_like(basis)))
    is_direction = jnp.einsum("k...,k...->k", basis, basis) > 0.5
    matrix = jnp.einsum("i...,j...->ij", basis, images)
    matrix = (matrix + matrix.T) / 2 + jnp.diag(jnp.where(is_direction, 0, 1e6))
    values, vectors = jnp.linalg.eigh(matrix)
    modes = jnp.einsum("ki,k...->i...", vectors[:, :2], basis)
    return values[:2], modes


def _product(surface: Surface, params: PyTree, z: BatchRows, neighbors: Neighbors) -> Callable:
    hessian = implicit.hessian(surface, params, z, neighbors)
    return lambda v: hessian.product(hessian.project(v))


def _as_batch(
    potential: Potential, system: System, neighbors: Neighbors, fixed: Bool[Array, "n_atoms 3"] | None
) -> tuple[Surface, Neighbors]:
    """The surface of one structure at a fixed cell, and its neighbours, as a batch of one."""
    system, neighbors = jax.tree.map(jnp.asarray, (as_system(system), neighbors))
    check_single(system, "A search for a saddle")
    check_shells(neighbors, potential.shells, anew=True)
    fixed = None if fixed is None else fixed_mask(fixed, system.numbers)[None]
    system, neighbors = jax.tree.map(lambda x: x[None], (jax.lax.stop_gradient(system), neighbors))
    return over(potential, system, fixed, None), neighbors
