"""The loss of force constants: products of the Hessian with some directions, at the reference's own structures."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from lamjax import properties
from lamjax.arguments import expect
from lamjax.factories import factory
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential, check_potential
from lamjax.system import System, real


class ForceConstantBatch(NamedTuple):
    """Some directions of the Hessian of structures, at the structures themselves. Leading axis of structures."""

    system: System
    neighbors: Neighbors
    directions: Float[Array, "n_batch n_directions n_atoms 3"]  # displacements of norm 1
    products: Float[Array, "n_batch n_directions n_atoms 3"]  # Φ v (eV/Å²)


def sampled_columns(
    constants: Float[np.ndarray, "n_rows n_super 3 3"], rows: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n n_super 3"], Float[np.ndarray, "n n_super 3"]]:
    """`n` directions at random among the atoms `rows` and components whose force constants are known, and Φ v of each.

    On the host; `constants` (eV/Å²) as `properties.force_constants` and phonopy's compact format have them.
    """
    constants = np.asarray(constants)
    if constants.ndim != 4 or constants.shape[2:] != (3, 3) or len(constants) != len(rows):
        raise ValueError(f"Force constants have shape {constants.shape}; expected ({len(rows)}, n_super, 3, 3).")
    chosen = rng.choice(3 * len(rows), size=n, replace=n > 3 * len(rows))
    directions = np.zeros((n, constants.shape[1], 3))
    directions[np.arange(n), np.asarray(rows)[chosen // 3], chosen % 3] = 1
    return directions, constants[chosen // 3, :, chosen % 3]


@factory
def force_constant_loss(potential: Potential) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)`: mean square of (H v - Φ v) per atom, in (eV/Å²)².

    The batch is a `ForceConstantBatch`: products of the reference's force constants with some directions, at the
    reference's own structure, as in the phonon fine-tuning of arXiv 2601.07742. A product costs about three evaluations
    of the forces. Rows without atoms do not count.
    """
    check_potential(potential, "force_constant_loss")

    def one(params, system, lists, directions, products):
        computed = properties.hessian_products(potential, params, system, lists, directions)
        error = jnp.where(real(system)[:, None], computed - products, 0)
        return jnp.mean(jnp.sum(error**2, axis=(1, 2))) / jnp.maximum(jnp.sum(real(system)), 1)

    def loss(params: PyTree, batch: ForceConstantBatch, lr_ratio: float | Array = 1.0) -> tuple[Array, dict]:
        remedy = "losses.sampled_columns gives its columns."
        expect(batch, ForceConstantBatch, "force_constant_loss takes a ForceConstantBatch", remedy)
        present = jnp.any(real(batch.system), axis=-1)
        each = jax.vmap(lambda *x: one(params, *x))(*batch)
        value = jnp.sum(jnp.where(present, each, 0)) / jnp.maximum(jnp.sum(present), 1)
        root = jnp.sqrt(jax.lax.stop_gradient(value) / 3)
        return value, {"force_constant_rmse": root, "n_structures": jnp.sum(present)}

    return loss
