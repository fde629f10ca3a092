"""DPA-3: atoms, edges and angles from types, distances and cosines, refined by the repflow layers.

Zhang et al., arXiv 2506.01686; numbers equal DeePMD-kit's.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lamjax import nn
from lamjax.descriptors.base import (
    Descriptor,
    allowed_pairs,
    mask_excluded,
    type_embedding,
    type_embedding_init,
    type_inputs,
)
from lamjax.descriptors.dpa3 import repflow
from lamjax.descriptors.dpa3.config import DPA3Config
from lamjax.factories import factory
from lamjax.neighbors import Neighbors

CHARGES, SPINS = 200, 100  # rows of the tables: charges -100 to 99, multiplicities 0 to 99


@factory
def dpa3(config: DPA3Config, elements: tuple[str, ...]) -> Descriptor:
    """The descriptor of a config for these elements."""
    inputs = type_inputs(elements, config.use_econf_tebd)

    def init(key: Array, dtype: DTypeLike | None = None) -> dict[str, Any]:
        return _init(key, config, inputs, dtype)

    def apply(
        params: PyTree,
        types: Array,
        neighbors: Neighbors,
        displacements: Array,
        first: Any = 0,
        charge_spin: Array | None = None,
    ) -> Array:
        return _apply(params, config, inputs, types, neighbors, displacements, charge_spin)

    def kept(params: PyTree, n_atoms: int, capacities: tuple[int, int]) -> int:
        itemsize = params["type_embedding"]["w"].dtype.itemsize
        return n_atoms * repflow.numbers_kept(config.repflow, *capacities) * itemsize

    return Descriptor(config, config.shells, config.width, config.receptive_field, init, apply, kept, True)


def _init(key: Array, config: DPA3Config, inputs: Any, dtype: DTypeLike | None) -> dict[str, Any]:
    n = config.repflow.n_dim
    keys = nn.split(key, 5)
    params = {
        "type_embedding": type_embedding_init(keys[0], inputs, n, config.use_tebd_bias, dtype),
        "repflow": repflow.init(keys[1], config.repflow, len(inputs), dtype),
    }
    if config.add_chg_spin_ebd:
        params |= {
            "chg_embedding": type_embedding_init(keys[2], np.eye(CHARGES), n, False, dtype),
            "spin_embedding": type_embedding_init(keys[3], np.eye(SPINS), n, False, dtype),
            "mix_cs_mlp": nn.linear_init(keys[4], 2 * n, n, dtype=dtype),
        }
    return params


def _apply(
    params: PyTree,
    config: DPA3Config,
    inputs: Any,
    types: Array,
    neighbors: Neighbors,
    displacements: Array,
    charge_spin: Array | None,
) -> Array:
    act = nn.activation(config.activation_function)
    embedded = type_embedding(params["type_embedding"], inputs)[types]
    if config.add_chg_spin_ebd:
        embedded = embedded + _charge_and_spin(params, config, act, charge_spin)
    allowed = allowed_pairs(config.exclude_types, len(inputs))
    masks = tuple(mask_excluded(mask, types, neighbors.indices, allowed) for mask in neighbors.masks)
    graph = repflow.graph(
        config.repflow, params["repflow"], types, neighbors.indices, masks, displacements, config.env_protection
    )
    nodes = repflow.apply(params["repflow"], config.repflow, act, graph, act(embedded))
    return jnp.concatenate([nodes, embedded], axis=-1) if config.concat_output_tebd else nodes


def _charge_and_spin(params: PyTree, config: DPA3Config, act: Callable, charge_spin: Array | None) -> Array:
    """What total charge and spin multiplicity of its structure add to the type embedding of an atom; NaN off range."""
    if charge_spin is None and config.default_chg_spin is not None:
        charge_spin = jnp.asarray(config.default_chg_spin)
    if charge_spin is None or charge_spin.shape[-1] != 2:
        got = "none" if charge_spin is None else f"{charge_spin.shape[-1]} numbers"
        raise ValueError(
            f"The model takes charge and spin multiplicity of the structure, which has {got}. Set System.charge_spin "
            '(ASE: atoms.info["charge_spin"] = [charge, multiplicity]), or default_chg_spin of the descriptor.'
        )
    rows = charge_spin.astype(jnp.int32) + jnp.array([CHARGES // 2, 0])
    tables = [type_embedding(params[f"{name}_embedding"], np.eye(n)) for name, n in (("chg", CHARGES), ("spin", SPINS))]
    both = jnp.concatenate([table[rows[..., k]] for k, table in enumerate(tables)], axis=-1)
    in_range = jnp.all((rows >= 0) & (rows < jnp.array([CHARGES, SPINS])), axis=-1, keepdims=True)
    return jnp.where(in_range, act(nn.linear(params["mix_cs_mlp"], both)), jnp.nan)
