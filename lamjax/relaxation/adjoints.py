"""How gradients go back through a relaxation: a config that is an argument of one and the same relaxation.

An adjoint of your own is a frozen dataclass with the methods of `AdjointMethods`, put into RelaxConfig(adjoint=...).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from jaxtyping import Array, Float

from lamjax.arguments import describe
from lamjax.relaxation.descent import Descent
from lamjax.relaxation.implicit import Hessian, Implicit, Solve


class AdjointMethods(Protocol):
    """What relaxations and losses ask of an adjoint.

    Without a `respond` the end has the derivatives of the steps to it, as far as `run` has unrolled them. With it, the
    end has those of a minimum, whatever `run` has done, and a structure gets none if its largest force is above `gate`
    (None: fmax of RelaxConfig). Entries beside `run` may be left out.
    """

    gate: float | None  # eV/Å
    through_steps: bool  # a gradient reaches the numbers of the minimiser

    def run(self, descent: Descent) -> Descent:
        """The descent at its end: `descent.unroll(n)` takes steps with derivatives, `descent.converge(n)` without."""

    def respond(self, hessian: Hessian, cotangent: Float[Array, "n_batch rows 3"]) -> tuple[Array, Solve]:
        """λ of dL/dθ = -λᵀ ∂g/∂θ, g = ∂(E + PV)/∂z, for ∂L/∂z = `cotangent`; and how the solve for it went."""


@dataclass(frozen=True)
class Unrolled:
    """At most `steps` steps (converged structures stand still), differentiated by backpropagation through time.

    What the minimiser itself needs is kept of every step (FIRE: some 20 numbers per atom, L-BFGS: 6 for each pair in
    its memory), and everything inside the potential is computed anew on the way back. With `segment` set, only every
    `segment`-th step is kept, for one more evaluation per step.
    """

    steps: int = 50
    segment: int | None = None
    type: Literal["unrolled"] = "unrolled"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.steps < 1 or (self.segment is not None and not 1 <= self.segment <= self.steps):
            raise ValueError(f"Unrolled needs steps >= 1 and 1 <= segment <= steps, got {self}.")

    def run(self, descent: Descent) -> Descent:
        """So many steps with their derivatives."""
        if self.segment is None:
            return descent.unroll(self.steps)
        return descent.unroll(self.steps, rows=-(-(self.steps + 1) // self.segment), stride=self.segment)


@dataclass(frozen=True)
class UntilConverged:
    """Step until converged, `max_steps` (None: those of RelaxConfig) at most, and differentiate every step taken.

    With `checkpoints` set, no more than so many steps are kept whatever their number will be: whenever they are full,
    every other one is given up; for one more evaluation per step.
    """

    max_steps: int | None = None
    checkpoints: int | None = None
    type: Literal["until_converged"] = "until_converged"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if (self.max_steps is not None and self.max_steps < 0) or (self.checkpoints or 2) < 2:
            raise ValueError(f"UntilConverged needs max_steps >= 0 and checkpoints >= 2, got {self}.")

    def run(self, descent: Descent) -> Descent:
        """All steps with their derivatives."""
        return descent.unroll(descent.max_steps if self.max_steps is None else self.max_steps, rows=self.checkpoints)


@dataclass(frozen=True)
class Hybrid:
    """Backpropagation through the first `window` steps, which choose the basin, and the implicit adjoint at its end.

    The two gradients are those of two results: `Relaxation.window` and `Relaxation.system`, since a minimum does not
    depend on the way to it. A loss has to speak of both. The idea is G-DEQ's, the follow-up of arXiv 2512.01067.
    """

    window: int = 20
    implicit: Implicit = Implicit()
    type: Literal["hybrid"] = "hybrid"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"Hybrid needs window >= 1, got {self.window}.")

    @property
    def gate(self) -> float | None:
        """eV/Å"""
        return self.implicit.gate

    def run(self, descent: Descent) -> Descent:
        """The steps of the window with their derivatives, then those of the implicit adjoint."""
        descent = descent.unroll(self.window).with_window()
        return self.implicit.run(descent._replace(max_steps=max(0, descent.max_steps - self.window)))

    def respond(self, hessian: Hessian, cotangent: Float[Array, "n_batch rows 3"]) -> tuple[Array, Solve]:
        """As the implicit adjoint."""
        return self.implicit.respond(hessian, cotangent)


Adjoint = UntilConverged | Unrolled | Implicit | Hybrid


def check_adjoint(adjoint: Any) -> None:
    """TypeError for what is no adjoint."""
    if isinstance(adjoint, type) or not callable(getattr(adjoint, "run", None)):
        raise TypeError(
            "An adjoint is Unrolled, UntilConverged, Implicit, Hybrid or a frozen dataclass of your own with methods "
            f"as in relaxation.AdjointMethods; {describe(adjoint)} has no method run(descent)."
        )


def is_of_the_end(adjoint: Any) -> bool:
    """True if the end of a relaxation has the derivatives of a minimum."""
    return getattr(adjoint, "respond", None) is not None


def is_through_steps(adjoint: Any) -> bool:
    """True if a gradient reaches the numbers of the minimiser."""
    return getattr(adjoint, "through_steps", True)
