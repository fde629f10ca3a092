"""How gradients go back through a relaxation: a config that is an argument of one and the same relaxation."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Unrolled:
    """At most `steps` steps (converged structures stand still), differentiated by backpropagation through time.

    What FIRE itself needs is kept of every step, some 20 numbers per atom, and everything inside the potential is
    computed anew on the way back. With `segment` set, only every `segment`-th step is kept, for one more evaluation
    per step.
    """

    steps: int = 50
    segment: int | None = None
    type: Literal["unrolled"] = "unrolled"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if self.steps < 1 or (self.segment is not None and not 1 <= self.segment <= self.steps):
            raise ValueError(f"Unrolled needs steps >= 1 and 1 <= segment <= steps, got {self}.")


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


@dataclass(frozen=True)
class Implicit:
    """Step until converged, and differentiate the minimum itself: memory and time do not depend on the steps.

    At a minimum g(x, θ) = ∂E/∂x = 0, so dL/dθ = -λᵀ ∂g/∂θ with H λ = ∂L/∂x, solved by conjugate residuals to the
    relative residual `tol`. Second derivatives are refused (TypeError). A structure whose largest force is above `gate`
    gets no gradient, for it is at no minimum. Where a residual r meets negative or hardly any curvature (rᵀHr <= 0, or
    |Hr| <= `curvature` |r|), the solution so far is taken: the remedy of truncated Newton methods. Maliyov, Grigorev,
    Swinburne, arXiv 2407.02414.

    Where a part moves at no cost (an atom or a molecule out of reach of the others, a joint that nothing stiffens) the
    minimum is a valley, and λ of least norm is taken: as if the part did not drift along the valley when parameters
    change. Smaller `curvature` makes the rest more accurate. A relaxation does not say that there is such a part; the
    losses count it in n_negative.
    """

    tol: float = 1e-4
    max_iterations: int = 200
    gate: float | None = None  # eV/Å; None: fmax of RelaxConfig
    polish: int = 0  # Newton steps after the relaxation, to come closer to the minimum than fmax
    damping: float = 0.0  # eV/Å², added to H
    curvature: float = 1e-3  # eV/Å²
    type: Literal["implicit"] = "implicit"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if not (0 < self.tol < 1 and self.max_iterations >= 1 and self.polish >= 0 and self.damping >= 0):
            raise ValueError(f"Implicit needs 0 < tol < 1, max_iterations >= 1, polish >= 0, damping >= 0, got {self}.")
        if self.gate is not None and self.gate <= 0:
            raise ValueError(f"gate is {self.gate} eV/Å; it must be positive, or None for the fmax of the relaxation.")


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


Adjoint = UntilConverged | Unrolled | Implicit | Hybrid
