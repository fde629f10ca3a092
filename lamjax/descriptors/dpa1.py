"""DPA-1 without attention: the radial block alone, the form into which DPA-2 is distilled.

Zhang et al., npj Comput. Mater. 2024, 10.1038/s41524-024-01278-7; numbers equal DeePMD-kit's `dpa1`/`se_atten`.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from pydantic import Field

from lamjax import nn
from lamjax.config import configuration
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
from lamjax.descriptors.embedding import TypedNet
from lamjax.descriptors.environment import Block, Switch, empty_slots, environment_matrix
from lamjax.descriptors.tabulation import TableConfig
from lamjax.factories import factory
from lamjax.neighbors import Shell


@configuration
class DPA1Config:
    """DPA-1 with `attn_layer` 0. Keys, defaults and meanings are otherwise DeePMD-kit's."""

    type: Literal["dpa1"] = "dpa1"
    rcut: Annotated[float, Field(description="Å")] = 6.0
    rcut_smth: Annotated[float, Field(description="Å, start of the switch")] = 0.5
    sel: Annotated[int, Field(description="neighbours kept, and the divisor of sums")] = 120
    neuron: tuple[Annotated[int, Field(ge=1)], ...] = (25, 50, 100)
    axis_neuron: Annotated[int, Field(ge=1)] = 16
    tebd_dim: Annotated[int, Field(ge=1)] = 8
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    type_one_side: bool = False
    set_davg_zero: bool = True
    activation_function: str = "tanh"
    resnet_dt: bool = False
    smooth_type_embedding: Annotated[
        bool, Field(description="strip: the part of the types goes to zero with the switch")
    ] = True
    concat_output_tebd: bool = True
    exclude_types: tuple[tuple[int, int], ...] = ()
    env_protection: float = 0.0
    use_econf_tebd: Annotated[bool, Field(description="types are embedded by their electronic configuration")] = False
    use_tebd_bias: bool = False
    graph: Annotated[
        bool,
        Field(
            description="sums run over all neighbours and no empty slots; `sel` only divides (DeePMD-kit's graph form)"
        ),
    ] = False
    table: Annotated[
        TableConfig | None, Field(description="the radial net as a table, see `edit.tabulate`; not for training")
    ] = None

    def __post_init__(self) -> None:
        repinit.check_block(self, self.sel, "sel")

    @property
    def element_rows(self) -> str | None:
        """The parameters with a row for each element; None where rows belong to orbitals."""
        return None if self.use_econf_tebd else "type_embedding"

    @property
    def smooth(self) -> bool:
        """Whether the type embedding is multiplied by the switch."""
        return self.smooth_type_embedding

    def with_table(self, table: TableConfig) -> "DPA1Config":
        """The same with the radial net as a table."""
        return replace(self, table=table)

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The one cutoff."""
        return (Shell(self.rcut, None if self.graph else self.sel),)

    @property
    def receptive_field(self) -> float:
        """Distance (Å) within which other atoms affect the features of an atom: the cutoff."""
        return self.rcut

    @property
    def width(self) -> int:
        """Features per atom."""
        return self.neuron[-1] * self.axis_neuron + (self.tebd_dim if self.concat_output_tebd else 0)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The one block whose environment is normalised."""
        return (Block("repinit", self.rcut, self.rcut_smth, self.sel, self.set_davg_zero),)

    @property
    def repinit(self) -> repinit.RepinitConfig:
        """The same settings as those of DPA-2's first block."""
        shared = repinit.RepinitConfig.__dataclass_fields__.keys() & vars(self).keys()
        return repinit.RepinitConfig(nsel=self.sel, **{name: getattr(self, name) for name in shared})


@factory
def dpa1(config: DPA1Config, elements: tuple[str, ...]) -> Descriptor:
    """The descriptor of a config for these elements."""
    inputs = type_inputs(elements, config.use_econf_tebd)

    def init(key: Array, dtype: DTypeLike | None = None) -> dict[str, Any]:
        keys = nn.split(key)
        return {
            "type_embedding": type_embedding_init(keys[0], inputs, config.tebd_dim, config.use_tebd_bias, dtype),
            "repinit": repinit.init(keys[1], config.repinit, len(inputs), dtype),
        }

    def apply(params: PyTree, atom_inputs: DescriptorInput) -> Array:
        return _apply(params, config, inputs, atom_inputs)

    return Descriptor(config, config.shells, config.width, config.receptive_field, init, apply)


def _apply(params: PyTree, config: DPA1Config, inputs: Any, atom_inputs: DescriptorInput) -> Array:
    types, neighbors, displacements, first, _ = atom_inputs
    table = type_embedding(params["type_embedding"], inputs)
    indices, neighbor_types, mask = split_neighbors(neighbors, types, 0)
    mask = mask_excluded(mask, types, indices, allowed_pairs(config.exclude_types, len(inputs)))
    statistics = params["repinit"]["statistics"]
    switch = Switch(config.rcut, config.rcut_smth, config.env_protection)
    env = environment_matrix(displacements, mask, types, statistics, switch)
    empty = empty_slots(config.set_davg_zero or config.graph, config.sel, neighbors, types, first)
    net = TypedNet(params["repinit"], config.repinit, config.smooth_type_embedding, table)
    features = repinit.apply(net, empty, types, neighbor_types, env)
    return jnp.concatenate([features, table[types]], axis=-1) if config.concat_output_tebd else features
