"""An adjoint of your own: the gradient of a minimum by a truncated Neumann series instead of a linear solve.

At a minimum dL/dθ = -λᵀ ∂g/∂θ with H λ = ∂L/∂z. Here λ = η Σ_k (1 - ηH)^k ∂L/∂z, k < terms, which converges for
0 < η < 2/(largest curvature). Few terms cost few Hessian products, and leave out how soft modes answer.

    RelaxConfig(fmax=1e-4, adjoint=Neumann(terms=40, eta=0.05))
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lamjax.relaxation import Solve


@dataclass(frozen=True)
class Neumann:
    """`terms` terms of the series, with the step `eta` (Å²/eV)."""

    terms: int = 20
    eta: float = 0.05

    def run(self, descent):
        """Forward: all steps, none of them differentiated."""
        return descent.converge(descent.max_steps)

    def respond(self, hessian, cotangent):
        """Backward: λ for every structure of a batch, arrays (n_batch, rows, 3); and how well H λ = cotangent holds."""
        start = hessian.project(cotangent)

        def add(_, carry):
            term, total = carry
            return term - self.eta * hessian.product(term), total + term

        _, total = jax.lax.fori_loop(0, self.terms, add, (start, jnp.zeros_like(start)))
        solution = self.eta * total
        left, size = (jnp.sqrt(jnp.sum(v**2, axis=(1, 2))) for v in (hessian.product(solution) - start, start))
        n = len(start)
        return solution, Solve(
            iterations=jnp.full(n, self.terms),
            residual=left / jnp.where(size > 0, size, 1),
            negative=jnp.zeros(n, bool),
        )
