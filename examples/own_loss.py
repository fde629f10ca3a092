"""A loss of your own: how far the mean bond length of relaxed structures is from a wanted one.

A loss is (params, batch, lr_ratio) -> (scalar, metrics), and training.fit takes it as any other. The batch is yours:
here structures with a leading axis, and their neighbours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import lamjax
from lamjax import neighbors, numerics
from lamjax.neighbors import Neighbors
from lamjax.system import System


class Clusters(NamedTuple):
    """What one step learns from."""

    system: System
    neighbors: Neighbors


def bond_length_loss(potential, wanted: float, within: float, config):
    """The loss of (mean distance below `within` - `wanted`)² (Å²) after relaxations as `config` has them."""

    def bonds(system, lists):
        r = numerics.safe_norm(neighbors.displacements(system, lists))
        is_bond = lists.mask & (r < within)
        return jnp.sum(jnp.where(is_bond, r, 0)) / jnp.maximum(jnp.sum(is_bond), 1)

    def loss(params, batch, lr_ratio=1.0):
        end = lamjax.relax(potential, params, batch.system, batch.neighbors, config)
        length = jax.vmap(bonds)(end.system, batch.neighbors)
        kept = end.converged & ~end.overflow
        error = jnp.where(kept, (length - wanted) ** 2, 0)
        number = jnp.maximum(jnp.sum(kept), 1)
        return jnp.sum(error) / number, {"bond": jnp.sum(jnp.where(kept, length, 0)) / number, "kept": jnp.sum(kept)}

    return loss
