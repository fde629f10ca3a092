"""A relaxation that is about to run: what an adjoint lets take steps, with or without their derivatives."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.steps import Progress, Steps, Weights
from lamjax.relaxation.surface import Surface
from lamjax.relaxation.walk import Memory, StepStart, advance, run_steps
from lamjax.system import System


class Descent(NamedTuple):
    """The state of a batch that relaxes on a surface; every function returns a new one."""

    steps: Steps
    surface: Surface  # its reference has no derivative
    weights: Weights  # arguments that the descent is differentiated by
    state: Progress
    lists: Any  # of neighbours
    max_steps: int  # of RelaxConfig
    is_begun: bool = False  # the start has been evaluated
    window: System | None = None  # structures on the way whose derivatives are those of the steps to them

    def unroll(self, n: int, rows: int | None = None, stride: int = 1) -> "Descent":
        """After at most `n` steps, with their derivatives (backpropagation through time).

        Kept for the backward pass are at most `rows` states (default: all), one per `stride` steps; steps between them
        are computed again.
        """
        limit = self._limit(n)
        start = StepStart(self.state, self.lists)
        state = run_steps(self.steps, Memory(rows or limit, stride), limit, self.weights, self.surface, start)
        return self._replace(state=state, is_begun=True)

    def converge(self, n: int) -> "Descent":
        """After at most `n` steps, without derivatives: the last structure is a constant."""
        weights, state = jax.lax.stop_gradient((self.weights, self.state))
        state, lists = advance(self.steps, self._limit(n), weights, self.surface, StepStart(state, self.lists))
        return self._replace(state=state, lists=lists, is_begun=True)

    def with_window(self) -> "Descent":
        """The structures as they are now are what `Relaxation.window` will be."""
        return self._replace(window=self.surface.with_cells(self.weights.cells).place(self.state.z))

    def is_settled(self, gate: float | None) -> Bool[Array, " n_batch"]:
        """The mask of structures at a minimum: no force above `gate` (eV/Å; None: fmax of RelaxConfig)."""
        state = self.state
        limit = self.steps.threshold(state.fmax.dtype) if gate is None else gate
        return state.finite & ~state.overflow & (state.fmax <= limit)

    def at(self, z: BatchRows, energy: Float[Array, " n_batch"], force: BatchRows | None = None) -> "Descent":
        """The structures at other coordinates, at rest; the force is the old one by default."""
        init, numbers = self.steps.minimiser.init, jax.lax.stop_gradient(self.weights.numbers)
        force = self.state.evaluation.force if force is None else force
        walker = jax.vmap(init, (None, 0, 0))(numbers, z, force)
        return self._replace(state=self.state._replace(walker=walker, energy=energy.astype(self.state.energy.dtype)))

    def _limit(self, n: int) -> int:
        return n if self.is_begun else n + 1  # the start is evaluated by a step that stays there


def begin(steps: Steps, surface: Surface, weights: Weights, start: tuple[Array, Any], max_steps: int) -> Descent:
    """At the start: coordinates, and empty lists of neighbours."""
    z, lists = start
    state = steps.start(weights.numbers, z, len(surface.potential.shells))
    return Descent(steps, surface, weights, state, lists, max_steps)
