"""Repinit: the radial embedding of DPA-1, contracted to rotation-invariant features D = A A[:M]ᵀ."""

import math
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array
from pydantic import Field

from lamjax import nn
from lamjax.config import configuration
from lamjax.descriptors import tabulation
from lamjax.descriptors.embedding import TypedNet, embed, embedding_init
from lamjax.descriptors.environment import Empty, Environment, Switch, padding_rows, per_atom, raw_rows, statistics_init
from lamjax.descriptors.tabulation import TableConfig


@configuration
class RepinitConfig:
    """First block: radial embedding of the neighbours (DPA-1 without attention)."""

    rcut: Annotated[float, Field(description="Å")] = 6.0
    rcut_smth: Annotated[float, Field(description="Å, start of the switch")] = 0.5
    nsel: Annotated[int, Field(description="neighbours kept, and the divisor of sums")] = 120
    neuron: tuple[Annotated[int, Field(ge=1)], ...] = (25, 50, 100)
    axis_neuron: Annotated[int, Field(ge=1)] = 16
    tebd_dim: Annotated[int, Field(ge=1)] = 8
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    type_one_side: bool = False
    set_davg_zero: bool = True
    activation_function: str = "tanh"
    resnet_dt: bool = False
    table: Annotated[
        TableConfig | None, Field(description="the radial net as a table, see `edit.tabulate`; not for training")
    ] = None

    def __post_init__(self) -> None:
        check_block(self, self.nsel, "nsel")


def check_block(config: Any, sel: int, name: str) -> None:
    """ValueError for a radial block (repinit, or all of DPA-1) that cannot be computed; `name` is that of `sel`."""
    check_shell(config, sel, name)
    check_net(config)
    if config.axis_neuron > config.neuron[-1]:
        raise ValueError(
            f"axis_neuron is {config.axis_neuron}, more than the last of neuron, {list(config.neuron)}: it is how many "
            f"of these {config.neuron[-1]} features are multiplied with all. Lower axis_neuron, or widen neuron."
        )


def check_shell(config: Any, sel: int, name: str) -> None:
    """ValueError for cutoffs and numbers of neighbours that no block can have."""
    if not 0 <= config.rcut_smth < config.rcut < math.inf:
        raise ValueError(
            f"rcut_smth ({config.rcut_smth:g} Å) must be at least 0 and below rcut ({config.rcut:g} Å): the switch "
            "falls from 1 at rcut_smth to 0 at rcut."
        )
    if sel < 1:
        raise ValueError(f"{name} must be at least 1, got {sel}: it is how many neighbours within rcut are kept.")


def check_net(config: Any) -> None:
    """ValueError for layers without width, or an activation function that is not known."""
    if not config.neuron:
        raise ValueError("neuron is empty: it lists the widths of the layers, for example [25, 50, 100].")
    if hasattr(config, "activation_function"):
        nn.activation(config.activation_function)


def init(key: Array, config: Any, n_types: int, dtype: DTypeLike | None = None) -> dict[str, Any]:
    if config.table:
        nets = tabulation.init(config.table, n_types, config.neuron[-1], dtype)
        return {**nets, "statistics": statistics_init(n_types, dtype)}
    nets = embedding_init(key, config, 1 if config.type_one_side else 2, config.neuron, dtype)
    return {**nets, "statistics": statistics_init(n_types, dtype)}


def apply(net: TypedNet, empty: Empty | None, types: Array, neighbor_types: Array, env: Environment) -> Array:
    """D (n_atoms, neuron[-1] * axis_neuron): A_i = (1/nsel) Σ_j G_ij ⊗ R_ij, D_i = A_i A_i[:M]ᵀ."""
    config = net.config
    if config.table:
        a = tabulation.contract(net.params, config.table, empty, types, neighbor_types, env)
    else:
        a = _contract(net, empty, types, neighbor_types, env)
    a = a / config.nsel
    return jnp.einsum("nkg,nkm->ngm", a, a[..., : config.axis_neuron]).reshape(len(types), -1)


def tabulate(net: TypedNet, protection: float, closest: float, tolerance: float) -> tuple[TableConfig, dict]:
    """TableConfig and parameters that replace the nets.

    For atoms no closer than `closest` (Å); `tolerance` as in `tabulation.tabulate`. Needs x64.
    """
    config, statistics = net.config, net.params["statistics"]
    n_types = len(statistics["mean"])
    by_switch = net.smooth and config.tebd_input_mode == "strip"

    def radial(x: Array, centre: Array, neighbor: Any) -> Array:
        mean, stddev = per_atom(statistics, centre)
        s = (x - mean[:, 0]) / stddev[:, 0]
        weights = (jnp.zeros_like(s), jnp.ones_like(s)) if by_switch else (jnp.ones_like(s),)
        first, *rest = (_embed(net, s, centre, neighbor, w) for w in weights)
        return jnp.stack([first, *(g - first for g in rest)], axis=1)

    rows, _ = raw_rows(jnp.array([closest, 0.0, 0.0]), Switch(config.rcut, config.rcut_smth, protection))
    return tabulation.tabulate(radial, n_types, float(rows[0]), closest, tolerance)


def _contract(net: TypedNet, empty: Empty | None, types: Array, neighbor_types: Array, env: Environment) -> Array:
    """Σ_j R_ij ⊗ G_ij (n_atoms, 4, neuron[-1]), `empty` slots included."""
    centre = types[:, None]
    g = _embed(net, env.matrix[..., 0], centre, neighbor_types, env.switch)
    a = jnp.einsum("nwk,nwg->nkg", env.matrix, g)
    if empty is None:
        return a
    row = padding_rows(net.params["statistics"], types)
    first_type = jnp.broadcast_to(empty.type, len(types))[:, None]
    # in smooth strip mode an empty slot has a switch of zero
    no_switch = jnp.zeros_like(row[:, :1])
    g_empty = _embed(net, row[:, :1], centre, first_type, no_switch)[:, 0]
    return a + empty.number[:, None, None] * row[:, :, None] * g_empty[:, None, :]


def _embed(net: TypedNet, s: Array, centre: Array, neighbor: Array, w: Array) -> Array:
    """G of normalised radial entries s, types at both ends, and the switch."""
    return embed(net, s, (neighbor,) if net.config.type_one_side else (neighbor, centre), w)
