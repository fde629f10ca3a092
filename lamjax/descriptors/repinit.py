"""Repinit: the radial embedding of DPA-1, contracted to rotation-invariant features D = A A[:M]ᵀ."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from lamjax import nn
from lamjax.descriptors.embedding import concat_embedding, embedding_init, strip_embedding
from lamjax.descriptors.environment import Environment, padding_rows, statistics_init


@dataclass(frozen=True)
class RepinitConfig:
    """First block: radial embedding of the neighbours (DPA-1 without attention)."""

    rcut: float = 6.0  # Å
    rcut_smth: float = 0.5  # Å, start of the switch
    nsel: int = 120  # neighbours kept, and the divisor of sums
    neuron: tuple[int, ...] = (25, 50, 100)
    axis_neuron: int = 16
    tebd_dim: int = 8
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    type_one_side: bool = False
    set_davg_zero: bool = True
    activation_function: str = "tanh"
    resnet_dt: bool = False
    __pydantic_config__: ClassVar = {"extra": "forbid"}


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
