"""One step of a relaxation, of a batch of structures side by side: propose coordinates, evaluate, accept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics, pytree
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.layouts import Evaluated, Layout
from lamjax.relaxation.minimisers import Minimiser
from lamjax.relaxation.surface import Evaluation, Surface


class Progress(NamedTuple):
    """The state of a batch between two steps."""

    walker: Any  # the minimiser's state
    energy: Float[Array, " n_batch"]
    virial: Float[Array, "n_batch 3 3"]
    fmax: Float[Array, " n_batch"]
    n_steps: Int[Array, " n_batch"]  # -1 before the start has been evaluated
    finite: Bool[Array, " n_batch"]
    overflow: Bool[Array, " n_batch"]
    truncated: Bool[Array, " n_batch"]
    largest_counts: Int[Array, "n_batch n_shells"]  # of the neighbours of an atom, within each shell

    @property
    def z(self) -> BatchRows:
        """Å"""
        return self.walker.position

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the last step, of which nothing has to be computed again."""
        return Evaluation(self.energy, self.walker.force, self.virial)


class Weights(NamedTuple):
    """The constants of a relaxation that it can be differentiated by."""

    params: Any
    numbers: dict[str, Array]  # of the minimiser
    cells: Float[Array, "n_batch 3 3"]  # before the strain


class Steps(NamedTuple):
    """One step of a batch, as pure functions."""

    minimiser: Minimiser
    layout: Layout
    fmax: float  # eV/Å

    def start(self, numbers: dict[str, Array], z: BatchRows, n_shells: int) -> Progress:
        """At the start with nothing evaluated; the first step does that, so that the potential is compiled once."""
        n = len(z)
        return Progress(
            walker=jax.vmap(self.minimiser.init, (None, 0, 0))(numbers, z, jnp.zeros_like(z)),
            energy=jnp.zeros(n, numerics.widest_float()),
            virial=jnp.zeros((n, 3, 3), z.dtype),
            fmax=jnp.full(n, jnp.inf, z.dtype),
            n_steps=jnp.full(n, -1, jnp.int32),
            finite=jnp.ones(n, bool),
            overflow=jnp.zeros(n, bool),
            truncated=jnp.zeros(n, bool),
            largest_counts=jnp.zeros((n, n_shells), jnp.int32),
        )

    def threshold(self, dtype: DTypeLike) -> float:
        """fmax (eV/Å), but at least where the square of a force still is a number."""
        return max(self.fmax, 1e3 * float(jnp.finfo(dtype).tiny) ** 0.5)

    def active(self, state: Progress) -> Bool[Array, " n_batch"]:
        """The mask of structures that have not converged."""
        return state.finite & (state.fmax > self.threshold(state.fmax.dtype))

    def step(self, weights: Weights, surface: Surface, state: Progress, lists: Any) -> tuple[Progress, Any]:
        """State and lists after one step of the structures that are active."""
        active = self.active(state)
        z = self.propose(weights, surface, state, active)
        lists = self.layout.refresh(surface, lists, z)
        evaluated = self.layout.evaluate(surface, weights.params, z, lists, active)
        return self.accept(weights, surface, state, active, (z, evaluated)), lists

    def propose(
        self, weights: Weights, surface: Surface, state: Progress, active: Bool[Array, " n_batch"]
    ) -> BatchRows:
        """The coordinates of the next evaluation: its present ones for a structure that is inactive, or begins."""
        walker, moves = _safe(state, active)
        z = jax.vmap(self.minimiser.propose, (None, 0, 0))(weights.numbers, walker, surface.reference.numbers)
        return jnp.where(moves[:, None, None] & surface.free, z, state.z)

    def accept(
        self,
        weights: Weights,
        surface: Surface,
        state: Progress,
        active: Bool[Array, " n_batch"],
        proposed: tuple[Array, Evaluated],
    ) -> Progress:
        """The state at proposed coordinates with the evaluation there; as it was where that gave no number."""
        z, evaluated = proposed
        walker, moves = _safe(state, active)
        good = active & evaluated.usable
        force = jnp.where(good[:, None, None], evaluated.evaluation.force, 0)
        safe_force = jnp.where(moves[:, None, None], force, 1)
        stepped = jax.vmap(self.minimiser.step, (None, 0, 0, 0))(weights.numbers, walker, z, safe_force)
        at_rest = jax.vmap(self.minimiser.init, (None, 0, 0))(weights.numbers, z, force)
        new = state._replace(
            walker=pytree.where(state.n_steps < 0, at_rest, stepped),
            energy=evaluated.evaluation.energy.astype(state.energy.dtype),
            virial=evaluated.evaluation.virial.astype(state.virial.dtype),
            fmax=surface.largest(force),
            n_steps=state.n_steps + 1,
        )
        return pytree.where(good, new, state)._replace(
            finite=state.finite & (good | ~active),
            overflow=state.overflow | (evaluated.overflow & active),
            truncated=state.truncated | (evaluated.truncated & active),
            largest_counts=jnp.maximum(state.largest_counts, jnp.where(active[:, None], evaluated.largest_counts, 0)),
        )


def _safe(state: Progress, active: Bool[Array, " n_batch"]) -> tuple[Any, Bool[Array, " n_batch"]]:
    """Minimiser's states to step from, and which of them are those of structures that move.

    Of the others they are ones: no norm in a step is then zero, where it has no derivative; these steps are not taken.
    """
    moves = active & (state.n_steps >= 0)
    ones = jax.tree.map(lambda x: jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, state.walker)
    return pytree.where(moves, state.walker, ones), moves
