"""Embedding nets of an edge quantity and the types at its ends, in both of DeePMD-kit's forms.

"concat" feeds [s, T_a, T_b] to one net; "strip" multiplies a net of s by a net of the types. The types enter the first
layer linearly, so their part is computed once per type, not once per edge.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from lamjax import nn


class TypedNet(NamedTuple):
    """An embedding net of an edge quantity and the types at the ends of the edge."""

    params: PyTree
    config: Any  # RepinitConfig: how types enter, activation
    smooth: bool  # the part of the types is multiplied by the switch
    table: Float[Array, "n_types_and_padding tebd_dim"]  # the type embedding


def embedding_init(
    key: Array, config: Any, n_type_inputs: int, neuron: tuple[int, ...], dtype: DTypeLike | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Parameters of one embedding; `n_type_inputs` is 2, or 1 for one-sided type input."""
    first, second = nn.split(key)
    width, timestep = n_type_inputs * config.tebd_dim, config.resnet_dt
    if config.tebd_input_mode == "concat":
        return {"net": nn.mlp_init(first, 1 + width, neuron, timestep, dtype)}
    return {
        "net": nn.mlp_init(first, 1, neuron, timestep, dtype),
        "net_strip": nn.mlp_init(second, width, neuron, timestep, dtype),
    }


def embed(net: TypedNet, s: Array, type_inputs: tuple[Array, ...], switch: Array) -> Array:
    """G of the edge quantity s, the types at both ends, and the switch."""
    activation = nn.activation(net.config.activation_function)
    if net.config.tebd_input_mode == "concat":
        return concat_embedding(net.params, s, net.table, type_inputs, activation)
    return strip_embedding(net.params, s, net.table, type_inputs, switch if net.smooth else None, activation)


def concat_embedding(params: PyTree, s: Array, table: Any, type_inputs: Any, activation: Callable) -> Array:
    """Net of [s, T[t] for t in type_inputs]; s has the shape of the edges, each type array broadcasts against it."""
    first, *rest = params["net"]
    dim = table.shape[1]
    blocks = [first["w"][1 + k * dim : 1 + (k + 1) * dim] for k in range(len(type_inputs))]
    pre = s[..., None] * first["w"][0]
    for block, types in zip(blocks, type_inputs, strict=True):
        pre = pre + (table @ block)[types]
    if "b" in first:
        pre = pre + first["b"]
    width = first["w"].shape
    x = None
    if width[1] in (width[0], 2 * width[0]):  # only then has the first layer a residual
        embedded = [jnp.broadcast_to(table[t], (*s.shape, dim)) for t in type_inputs]
        x = jnp.concatenate([s[..., None], *embedded], axis=-1)
    return nn.mlp(rest, nn.finish_dense(first, pre, x, activation), activation)


def strip_embedding(
    params: PyTree, s: Array, table: Any, type_inputs: Any, weight: Array | None, activation: Callable
) -> Array:
    """Gs + Gs * Gt * weight, Gs = net(s), Gt = net_strip([T[t] for t in type_inputs]); `weight` None means 1."""
    radial = nn.mlp(params["net"], s[..., None], activation)
    by_type = _strip_net(params["net_strip"], table, type_inputs, s.shape, activation)
    if weight is not None:
        by_type = by_type * weight[..., None]
    return radial * by_type + radial


def _strip_net(net: PyTree, table: PyTree, type_inputs: Array, shape: tuple[int, ...], activation: Callable) -> Array:
    """The type net, on all pairs of types where these are fewer than the edges."""
    n_types, n_inputs = table.shape[0], len(type_inputs)
    n_edges = 1
    for axis in shape:
        n_edges *= axis
    if n_types**n_inputs <= n_edges:
        grid = jnp.meshgrid(*[jnp.arange(n_types)] * n_inputs, indexing="ij")
        values = nn.mlp(net, jnp.concatenate([table[g] for g in grid], axis=-1), activation)
        return values[tuple(jnp.broadcast_to(t, shape) for t in type_inputs)]
    inputs = [jnp.broadcast_to(table[t], (*shape, table.shape[1])) for t in type_inputs]
    return nn.mlp(net, jnp.concatenate(inputs, axis=-1), activation)
