"""Three-body block: an embedding of R_ij · R_ik and the two types, summed over ordered pairs of neighbours."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from lamjax.descriptors.embedding import TypedNet, embed, embedding_init
from lamjax.descriptors.environment import Environment, statistics_init


def init(key: Array, config: Any, repinit: Any, n_types: int, dtype: DTypeLike | None = None) -> dict:
    return {**embedding_init(key, repinit, 2, config.neuron, dtype), "statistics": statistics_init(n_types, dtype)}


def apply(net: TypedNet, sel: int, neighbor_types: Array, env: Environment) -> Array:
    """D3_i = (1/sel²) Σ_jk θ_jk G(θ_jk, t_j, t_k), θ_jk = R_ij[1:4] · R_ik[1:4]: (n_atoms, neuron[-1])."""
    angular = env.matrix[..., 1:]
    theta = jnp.einsum("njx,nkx->njk", angular, angular)
    inputs = (neighbor_types[:, :, None], neighbor_types[:, None, :])
    g = embed(net, theta, inputs, env.switch[:, :, None] * env.switch[:, None, :])
    return jnp.sum(theta[..., None] * g, axis=(1, 2)) / sel**2
