"""The energy head: one fitting net for all elements, plus a bias per element."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from lamjax import nn, numerics
from lamjax.heads.base import Head


@dataclass(frozen=True)
class EnergyHeadConfig:
    """Keys, defaults and meanings are those of DeePMD-kit's `fitting_net`."""

    type: Literal["ener"] = "ener"
    neuron: tuple[int, ...] = (120, 120, 120)
    activation_function: str = "tanh"
    resnet_dt: bool = True
    dim_case_embd: int = 0  # width of the constant vector that tells data sets apart in a shared net
    exclude_types: tuple[int, ...] = ()  # types whose atoms have energy zero
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def energy_head(config: EnergyHeadConfig, n_features: int, n_types: int) -> Head:
    """E_i = net(x_i) + bias_atom_e[t_i] + out_bias[t_i] (eV); 0 for padding and for excluded types."""

    def init(key, dtype=None):
        wide = numerics.widest_float()
        keys = jax.random.split(key)
        neuron = config.neuron
        params = {
            "layers": [
                *nn.mlp_init(keys[0], n_features + config.dim_case_embd, neuron, config.resnet_dt, dtype),
                nn.linear_init(keys[1], neuron[-1], 1, dtype=dtype),
            ],
            "statistics": {
                "bias_atom_e": jnp.zeros(n_types, dtype),
                "out_bias": jnp.zeros(n_types, wide),
                "out_std": jnp.ones(n_types, wide),
            },
        }
        if config.dim_case_embd:
            params["statistics"]["case_embd"] = jnp.zeros(config.dim_case_embd, dtype)
        return params

    def apply(params, features, types):
        return _apply(params, config, n_types, features, types)

    return Head(config, init, apply)


def _apply(params, config, n_types, features, types):
    statistics = params["statistics"]
    if config.dim_case_embd:
        case = jnp.broadcast_to(statistics["case_embd"], (len(features), config.dim_case_embd))
        features = jnp.concatenate([features, case.astype(features.dtype)], axis=-1)
    *hidden, last = params["layers"]
    net = nn.linear(last, nn.mlp(hidden, features, nn.activation(config.activation_function)))[:, 0]
    counted = types < n_types
    for excluded in config.exclude_types:
        counted = counted & (types != excluded)
    index = jnp.minimum(types, n_types - 1)
    local = net + statistics["bias_atom_e"][index]
    # the bias is most of the energy: it is added in the widest float there is
    energy = local.astype(numerics.widest_float()) + statistics["out_bias"][index]
    return jnp.where(counted, energy, 0)
