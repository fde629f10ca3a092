"""DPA-2: repinit and three-body features, transformed to g1, refined by the repformer.

Zhang et al., npj Comput. Mater. 2024, 10.1038/s41524-024-01493-2; numbers equal DeePMD-kit's.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lamjax import nn, numerics
from lamjax.descriptors import repinit
from lamjax.descriptors.base import (
    Descriptor,
    DescriptorInput,
    allowed_pairs,
    mask_excluded,
    split_neighbors,
    type_embedding,
    type_embedding_init,
    type_inputs,
)
from lamjax.descriptors.dpa2 import repformer, three_body
from lamjax.descriptors.dpa2.config import DPA2Config
from lamjax.descriptors.embedding import TypedNet
from lamjax.descriptors.environment import ShellView, Switch, empty_slots, environment_matrix
from lamjax.factories import factory


@factory
def dpa2(config: DPA2Config, elements: tuple[str, ...]) -> Descriptor:
    """The descriptor of a config for these elements."""
    inputs = type_inputs(elements, config.use_econf_tebd)

    def init(key: Array, dtype: DTypeLike | None = None) -> dict[str, Any]:
        return _init(key, config, inputs, dtype)

    def apply(params: PyTree, atom_inputs: DescriptorInput) -> Array:
        return _apply(params, config, inputs, atom_inputs)

    return Descriptor(config, config.shells, config.width, config.receptive_field, init, apply)


def _init(key: Array, config: DPA2Config, inputs: Any, dtype: DTypeLike | None) -> dict[str, Any]:
    n_types = len(inputs)
    keys = nn.split(key, 6)
    c = config.repinit
    width = c.neuron[-1] * c.axis_neuron + (config.three_body.neuron[-1] if config.three_body else 0)
    params = {
        "type_embedding": type_embedding_init(keys[0], inputs, c.tebd_dim, config.use_tebd_bias, dtype),
        "repinit": repinit.init(keys[1], c, n_types, dtype),
        "repformer": repformer.init(keys[2], config.repformer, n_types, dtype),
    }
    if config.three_body:
        params["three_body"] = three_body.init(keys[3], config.three_body, c, n_types, dtype)
    if width != config.repformer.g1_dim:  # else the transform is the identity
        params["g1_transform"] = nn.glorot_init(keys[4], width, config.repformer.g1_dim, dtype)
    if config.add_tebd_to_repinit_out:
        params["tebd_transform"] = nn.linear_init(keys[5], c.tebd_dim, config.repformer.g1_dim, bias=False, dtype=dtype)
    return params


def _apply(params: PyTree, config: DPA2Config, inputs: Any, atom_inputs: DescriptorInput) -> Array:
    types, neighbors, displacements, first, _ = atom_inputs
    table = type_embedding(params["type_embedding"], inputs)
    allowed = allowed_pairs(config.exclude_types, len(inputs))

    def view(shell: int, block: Any, statistics: Any) -> ShellView:
        indices, neighbor_types, mask = split_neighbors(neighbors, types, shell)
        mask = mask_excluded(mask, types, indices, allowed)
        d = displacements[:, : mask.shape[1]]
        switch = Switch(block.rcut, block.rcut_smth, config.env_protection)
        return ShellView(indices, neighbor_types, d, environment_matrix(d, mask, types, statistics, switch))

    wide = view(0, config.repinit, params["repinit"]["statistics"])
    empty = empty_slots(config.repinit.set_davg_zero, config.repinit.nsel, neighbors, types, first)
    if empty is not None:  # a row for each atom
        empty = empty._replace(type=jnp.broadcast_to(empty.type, types.shape))
    near = view(2, config.three_body, params["three_body"]["statistics"]) if config.three_body else None

    def local(types: Array, empty: Any, wide: Any, near: Any) -> Array:
        """The features of some atoms from the elements and places of their neighbours."""
        net = TypedNet(params["repinit"], config.repinit, config.smooth, table)
        features = repinit.apply(net, empty, types, *wide)
        if near is None or config.three_body is None:
            return features
        triples = three_body.apply(net._replace(params=params["three_body"]), config.three_body.sel, *near)
        return jnp.concatenate([features, triples], axis=-1)

    seen = tuple(None if one is None else (one.types, one.env) for one in (wide, near))
    features = numerics.in_blocks(local, repformer.block(), types, empty, *seen)
    g1 = nn.linear(params["g1_transform"], features) if "g1_transform" in params else features
    if "tebd_transform" in params:
        g1 = g1 + nn.linear(params["tebd_transform"], table)[types]
    edges = view(1, config.repformer, params["repformer"]["statistics"])
    g1 = repformer.apply(params["repformer"], config.repformer, config.smooth, g1, edges)
    return jnp.concatenate([g1, table[types]], axis=-1) if config.concat_output_tebd else g1
