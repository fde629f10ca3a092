"""Adjoints, methods of differentiating a relaxation: configs that are arguments of one relaxation.

An adjoint of your own is a frozen dataclass with the methods of `AdjointMethods`, put into RelaxConfig(adjoint=...).
"""

from typing import Annotated, Any, Literal, Protocol

from jaxtyping import Array
from pydantic import Field

from lamjax.arguments import describe
from lamjax.config import configuration, or_own
from lamjax.relaxation.coordinates import BatchRows
from lamjax.relaxation.descent import Descent
from lamjax.relaxation.implicit import Hessian, Implicit, Solve


class AdjointMethods(Protocol):
    """The interface of an adjoint to relaxations and losses.

    Without a `respond` the end has the derivatives of the steps to it, as far as `run` has unrolled them. With it, the
    end has those of a minimum, whatever `run` has done, and a structure gets none if its largest force is above `gate`
    (None: fmax of RelaxConfig). Entries beside `run` may be left out.
    """

    gate: float | None  # eV/Å
    through_steps: bool  # a gradient reaches the numbers of the minimiser

    def run(self, descent: Descent) -> Descent:
        """The descent at its end: `descent.unroll(n)` takes steps with derivatives, `descent.converge(n)` without."""
        ...

    def respond(self, hessian: Hessian, cotangent: BatchRows) -> tuple[Array, Solve]:
        """λ of dL/dθ = -λᵀ ∂g/∂θ, g = ∂(E + PV)/∂z, for ∂L/∂z = `cotangent`; and how the solve for it went."""
        ...


@configuration
class Unrolled:
    """At most `steps` steps (converged structures stand still), differentiated by backpropagation through time.

    What the minimiser itself needs is kept of every step (FIRE: some 20 numbers per atom, L-BFGS: 6 for each pair in
    its memory), and everything inside the potential is recomputed in the backward pass. With `segment` set, only every
    `segment`-th step is kept, for one more evaluation per step.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    segment: Annotated[int | None, Field(ge=1, description="steps between those that are kept; None: all are")] = None
    type: Literal["unrolled"] = "unrolled"

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment > self.steps:
            raise ValueError(f"Unrolled needs segment <= steps, got {self.segment} and {self.steps}.")

    def run(self, descent: Descent) -> Descent:
        """A fixed number of steps with their derivatives."""
        if self.segment is None:
            return descent.unroll(self.steps)
        return descent.unroll(self.steps, rows=-(-(self.steps + 1) // self.segment), stride=self.segment)


@configuration
class UntilConverged:
    """Step until converged, `max_steps` (None: those of RelaxConfig) at most, and differentiate every step taken.

    With `checkpoints` set, no more than so many steps are kept whatever their number will be: whenever they are full,
    every other one is given up; for one more evaluation per step.
    """

    max_steps: Annotated[int | None, Field(ge=0, description="None: those of RelaxConfig")] = None
    checkpoints: Annotated[int | None, Field(ge=2, description="steps that are kept at most; None: all are")] = None
    type: Literal["until_converged"] = "until_converged"

    def run(self, descent: Descent) -> Descent:
        """All steps with their derivatives."""
        return descent.unroll(descent.max_steps if self.max_steps is None else self.max_steps, rows=self.checkpoints)


@configuration
class Hybrid:
    """Backpropagation through the first `window` steps, which choose the basin, and the implicit adjoint at its end.

    The two gradients are those of two results: `Relaxation.window` and `Relaxation.system`, since a minimum does not
    depend on the way to it. A loss has to speak of both. The idea is G-DEQ's, the follow-up of arXiv 2512.01067.
    """

    window: Annotated[int, Field(ge=1, description="steps")] = 20
    implicit: Annotated[
        Implicit, or_own(lambda own: check_adjoint(own)), Field(description="how the minimum responds")
    ] = Implicit()
    type: Literal["hybrid"] = "hybrid"

    @property
    def gate(self) -> float | None:
        """eV/Å"""
        return self.implicit.gate

    def run(self, descent: Descent) -> Descent:
        """The steps of the window with their derivatives, then those of the implicit adjoint."""
        descent = descent.unroll(self.window).with_window()
        return self.implicit.run(descent._replace(max_steps=max(0, descent.max_steps - self.window)))

    def respond(self, hessian: Hessian, cotangent: BatchRows) -> tuple[Array, Solve]:
        """As the implicit adjoint."""
        return self.implicit.respond(hessian, cotangent)


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


Adjoint = Annotated[UntilConverged | Unrolled | Implicit | Hybrid, or_own(check_adjoint)]  # or what has these methods
