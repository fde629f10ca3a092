"""The energy head: one fitting net for all elements, plus a bias per element."""

from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from pydantic import Field

from lamjax import nn, numerics
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.heads.base import Head


@configuration
class EnergyHeadConfig:
    """Keys, defaults and meanings are those of DeePMD-kit's `fitting_net`."""

    type: Literal["ener"] = "ener"
    neuron: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="of the hidden layers; none: a linear map of the features"),
    ] = (120, 120, 120)
    activation_function: str = "tanh"
    resnet_dt: bool = True
    numb_fparam: Annotated[
        int, Field(ge=0, description="frame parameters (for example an electronic temperature), `System.fparam`")
    ] = 0
    numb_aparam: Annotated[int, Field(ge=0, description="atomic parameters, `System.aparam`")] = 0
    default_fparam: Annotated[tuple[float, ...] | None, Field(description="for structures without fparam")] = None
    dim_case_embd: Annotated[
        int, Field(ge=0, description="width of the constant vector that tells data sets apart in a shared net")
    ] = 0
    exclude_types: Annotated[tuple[int, ...], Field(description="types whose atoms have energy zero")] = ()

    def __post_init__(self) -> None:
        nn.activation(self.activation_function)
        if self.default_fparam is not None and len(self.default_fparam) != self.numb_fparam:
            raise ValueError(
                f"default_fparam has {len(self.default_fparam)} numbers and numb_fparam is {self.numb_fparam}: "
                "make them equal."
            )


@factory
def energy_head(config: EnergyHeadConfig, n_features: int, n_types: int) -> Head:
    """E_i = net(x_i) + bias_atom_e[t_i] + out_bias[t_i] (eV); 0 for padding and for excluded types.

    x_i = [descriptor, (fparam - avg) inv_std, (aparam - avg) inv_std, case_embd].
    """

    def init(key: Array, dtype: DTypeLike | None = None) -> dict[str, Any]:
        return _init(key, config, n_features, n_types, dtype)

    def apply(
        params: PyTree, features: Array, types: Array, fparam: Array | None = None, aparam: Array | None = None
    ) -> Array:
        x = jnp.concatenate([features, *_further_inputs(params, config, features, fparam, aparam)], axis=-1)
        return _apply(params, config, n_types, x, types)

    return Head(config, init, apply)


def _init(
    key: Array, config: EnergyHeadConfig, n_features: int, n_types: int, dtype: DTypeLike | None
) -> dict[str, Any]:
    wide = numerics.widest_float()
    keys = nn.split(key)
    n_inputs = n_features + config.numb_fparam + config.numb_aparam + config.dim_case_embd
    statistics = {
        "bias_atom_e": jnp.zeros(n_types, dtype),
        "out_bias": jnp.zeros(n_types, wide),
        "out_std": jnp.ones(n_types, wide),
    }
    for name, width in (("fparam", config.numb_fparam), ("aparam", config.numb_aparam)):
        if width:
            statistics |= {f"{name}_avg": jnp.zeros(width, dtype), f"{name}_inv_std": jnp.ones(width, dtype)}
    if config.dim_case_embd:
        statistics["case_embd"] = jnp.zeros(config.dim_case_embd, dtype)
    hidden = nn.mlp_init(keys[0], n_inputs, config.neuron, config.resnet_dt, dtype)
    last = nn.linear_init(keys[1], (n_inputs, *config.neuron)[-1], 1, dtype=dtype)
    return {"layers": [*hidden, last], "statistics": statistics}


def _further_inputs(
    params: PyTree, config: EnergyHeadConfig, features: Array, fparam: Array | None, aparam: Array | None
) -> list:
    """Inputs of the net beside the descriptor, each (n_atoms, width)."""
    n, statistics = len(features), params["statistics"]
    if fparam is None and config.default_fparam is not None:
        fparam = jnp.asarray(config.default_fparam)
    columns = []
    for name, value, width in (("fparam", fparam, config.numb_fparam), ("aparam", aparam, config.numb_aparam)):
        if width:
            _check_width(name, value, width)
            scaled = (value.astype(features.dtype) - statistics[f"{name}_avg"]) * statistics[f"{name}_inv_std"]
            columns.append(jnp.broadcast_to(scaled, (n, width)))
    if config.dim_case_embd:
        columns.append(jnp.broadcast_to(statistics["case_embd"], (n, config.dim_case_embd)))
    return [column.astype(features.dtype) for column in columns]


def _check_width(name: str, value: Any, width: int) -> None:
    where = {"fparam": 'info["fparam"]', "aparam": 'arrays["aparam"]'}[name]
    if value is None or value.shape[-1] != width:
        got = "none" if value is None else value.shape[-1]
        raise ValueError(
            f"The head takes {width} numbers {name}, the structure has {got}. Set System.{name} (ASE: atoms.{where})."
        )


def _apply(params: PyTree, config: EnergyHeadConfig, n_types: int, x: Array, types: Array) -> Array:
    statistics = params["statistics"]
    *hidden, last = params["layers"]
    net = nn.linear(last, nn.mlp(hidden, x, nn.activation(config.activation_function)))[:, 0]
    counted = types < n_types
    for excluded in config.exclude_types:
        counted = counted & (types != excluded)
    index = jnp.minimum(types, n_types - 1)
    local = net + statistics["bias_atom_e"][index]
    # the bias is most of the energy: it is added in the widest float there is
    energy = local.astype(numerics.widest_float()) + statistics["out_bias"][index]
    return jnp.where(counted, energy, 0)
