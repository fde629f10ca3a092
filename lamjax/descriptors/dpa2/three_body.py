"""Three-body block: an embedding of R_ij · R_ik and the two types, summed over ordered pairs of neighbours."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lamjax import nn
from lamjax.descriptors.embedding import concat_embedding, embedding_init, strip_embedding
from lamjax.descriptors.environment import Environment, statistics_init


def init(key: Array, config: Any, repinit: Any, n_types: int, dtype: DTypeLike | None = None) -> dict:
    first, second = nn.split(key)
    width, timestep = repinit.tebd_dim, repinit.resnet_dt
    nets = embedding_init(first, second, repinit.tebd_input_mode, 2, width, config.neuron, timestep, dtype)
    return {**nets, "statistics": statistics_init(n_types, dtype)}


def apply(
    params: PyTree, config: Any, repinit: Any, smooth: bool, table: PyTree, neighbor_types: Array, env: Environment
) -> Array:
    """D3_i = (1/sel²) Σ_jk θ_jk G(θ_jk, t_j, t_k), θ_jk = R_ij[1:4] · R_ik[1:4]: (n_atoms, neuron[-1])."""
    activation = nn.activation(repinit.activation_function)
    angular = env.matrix[..., 1:]
    theta = jnp.einsum("njx,nkx->njk", angular, angular)
    inputs = (neighbor_types[:, :, None], neighbor_types[:, None, :])
    if repinit.tebd_input_mode == "concat":
        g = concat_embedding(params, theta, table, inputs, activation)
    else:
        weight = env.switch[:, :, None] * env.switch[:, None, :] if smooth else None
        g = strip_embedding(params, theta, table, inputs, weight, activation)
    return jnp.sum(theta[..., None] * g, axis=(1, 2)) / config.sel**2
