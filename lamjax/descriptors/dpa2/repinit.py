"""Repinit: the radial embedding of DPA-1, contracted to rotation-invariant features D = A A[:M]ᵀ."""

import jax
import jax.numpy as jnp

from lamjax import nn
from lamjax.descriptors.dpa2.embedding import concat_embedding, embedding_init, strip_embedding
from lamjax.descriptors.environment import Environment, padding_rows, statistics_init


def init(key, config, n_types: int, dtype=None):
    keys = jax.random.split(key)
    n_inputs = 1 if config.type_one_side else 2
    nets = embedding_init(
        *keys, config.tebd_input_mode, n_inputs, config.tebd_dim, config.neuron, config.resnet_dt, dtype
    )
    return {**nets, "statistics": statistics_init(n_types, dtype)}


def apply(params, config, smooth: bool, n_empty, table, types, neighbor_types, env: Environment):
    """D (n_atoms, neuron[-1] * axis_neuron): A_i = (1/nsel) Σ_j G_ij ⊗ R_ij, D_i = A_i A_i[:M]ᵀ.

    `n_empty` (n_atoms,): slots without a neighbour, which contribute -mean/stddev as they do in DeePMD-kit when the
    mean is not zero; None: nothing. The slots of excluded pairs are neither neighbours nor empty.
    """
    activation = nn.activation(config.activation_function)

    def embed(s, neighbor, w):
        centre = types[:, None]
        inputs = (neighbor,) if config.type_one_side else (neighbor, centre)
        if config.tebd_input_mode == "concat":
            return concat_embedding(params, s, table, inputs, activation)
        return strip_embedding(params, s, table, inputs, w if smooth else None, activation)

    g = embed(env.matrix[..., 0], neighbor_types, env.switch)
    a = jnp.einsum("nwk,nwg->nkg", env.matrix, g)
    if n_empty is not None:
        row = padding_rows(params["statistics"], types)
        # an empty slot has the type of the frame's first atom and, in smooth strip mode, a switch of zero
        first_type = jnp.broadcast_to(types[0], (len(types), 1))
        g_empty = embed(row[:, :1], first_type, jnp.zeros_like(row[:, :1]))[:, 0]
        a = a + n_empty[:, None, None] * row[:, :, None] * g_empty[:, None, :]
    a = a / config.nsel
    return jnp.einsum("nkg,nkm->ngm", a, a[..., : config.axis_neuron]).reshape(len(types), -1)
