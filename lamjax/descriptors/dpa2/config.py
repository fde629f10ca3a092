"""Configuration of DPA-2. Keys, defaults and meanings are DeePMD-kit's."""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from lamjax import nn
from lamjax.config import configuration
from lamjax.descriptors.environment import Block
from lamjax.descriptors.repinit import RepinitConfig, check_net, check_shell
from lamjax.descriptors.tabulation import TableConfig
from lamjax.neighbors import Shell


@configuration
class ThreeBodyConfig:
    """Optional block over pairs of neighbours; type embedding, activation and resnet_dt are repinit's."""

    rcut: Annotated[float, Field(description="Å")] = 4.0
    rcut_smth: Annotated[float, Field(description="Å")] = 0.5
    sel: int = 40
    neuron: tuple[Annotated[int, Field(ge=1)], ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        check_shell(self, self.sel, "sel")
        check_net(self)


@configuration
class RepformerConfig:
    """The message-passing layers."""

    rcut: Annotated[float, Field(description="Å")] = 4.0
    rcut_smth: Annotated[float, Field(description="Å")] = 0.5
    nsel: int = 48
    nlayers: Annotated[int, Field(ge=1)] = 3
    g1_dim: Annotated[int, Field(ge=1)] = 128
    g2_dim: Annotated[int, Field(ge=1)] = 16
    axis_neuron: Annotated[int, Field(ge=1)] = 4
    direct_dist: bool = False
    update_g1_has_conv: bool = True
    update_g1_has_drrd: bool = True
    update_g1_has_grrg: bool = True
    update_g1_has_attn: bool = True
    update_g2_has_g1g1: bool = True
    update_g2_has_attn: bool = True
    update_h2: bool = False
    attn1_hidden: Annotated[int, Field(ge=1)] = 64
    attn1_nhead: Annotated[int, Field(ge=1)] = 4
    attn2_hidden: Annotated[int, Field(ge=1)] = 16
    attn2_nhead: Annotated[int, Field(ge=1)] = 4
    attn2_has_gate: bool = False
    activation_function: str = "tanh"
    update_style: Literal["res_avg", "res_incr", "res_residual"] = "res_avg"
    update_residual: float = 0.001
    update_residual_init: Literal["norm", "const"] = "norm"
    set_davg_zero: bool = True
    use_sqrt_nnei: bool = True
    g1_out_conv: bool = True
    g1_out_mlp: bool = True
    ln_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_shell(self, self.nsel, "nsel")
        nn.activation(self.activation_function)
        widths = {"g2_dim": self.g2_dim if self.update_g1_has_grrg else None}
        widths |= {"g1_dim": self.g1_dim if self.update_g1_has_drrd else None}
        for name, width in widths.items():
            if width is not None and self.axis_neuron > width:
                raise ValueError(
                    f"axis_neuron is {self.axis_neuron}, more than {name}, {width}: it is how many of these features "
                    f"are multiplied with all. Lower axis_neuron, or raise {name}."
                )


@configuration
class DPA2Config:
    """The DPA-2 descriptor (Zhang et al., npj Comput. Mater. 2024, 10.1038/s41524-024-01493-2)."""

    type: Literal["dpa2"] = "dpa2"
    repinit: RepinitConfig = field(default_factory=RepinitConfig)
    three_body: ThreeBodyConfig | None = None
    repformer: RepformerConfig = field(default_factory=RepformerConfig)
    concat_output_tebd: bool = True
    smooth: bool = True
    exclude_types: tuple[tuple[int, int], ...] = ()
    env_protection: float = 0.0
    use_econf_tebd: Annotated[bool, Field(description="types are embedded by their electronic configuration")] = False
    use_tebd_bias: bool = False
    add_tebd_to_repinit_out: bool = False

    def __post_init__(self) -> None:
        if not (self.repformer.update_g1_has_grrg or self.repformer.update_g1_has_drrd):
            if self.repformer.g1_out_conv and self.repformer.g1_out_mlp:
                raise ValueError(
                    "update_g1_has_grrg and update_g1_has_drrd are both off while g1_out_conv and g1_out_mlp are on: "
                    "linear1 has no input. Switch one of them on (DeePMD-kit cannot evaluate this either)."
                )
        outer = self.repinit
        for name, block in (("repformer", self.repformer), ("three_body", self.three_body)):
            if block and (block.rcut > outer.rcut or _sel(block) > outer.nsel):
                raise ValueError(
                    f"{name} has rcut {block.rcut:g} Å and sel {_sel(block)}, repinit {outer.rcut:g} Å and "
                    f"{outer.nsel}: repinit must have the larger of both. Raise repinit.rcut or repinit.nsel."
                )

    @property
    def shells(self) -> tuple[Shell, ...]:
        """repinit's cutoff, the repformer's, and that of the three-body block where there is one."""
        inner = [Shell(self.repformer.rcut, self.repformer.nsel)]
        if self.three_body:
            inner.append(Shell(self.three_body.rcut, self.three_body.sel))
        return (Shell(self.repinit.rcut, self.repinit.nsel), *inner)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks whose environment is normalised; the three-body block's mean is treated as repinit's is."""
        a, b, c = self.repinit, self.repformer, self.three_body
        three = (Block("three_body", c.rcut, c.rcut_smth, c.sel, a.set_davg_zero),) if c else ()
        return (
            Block("repinit", a.rcut, a.rcut_smth, a.nsel, a.set_davg_zero),
            Block("repformer", b.rcut, b.rcut_smth, b.nsel, b.set_davg_zero),
            *three,
        )

    @property
    def element_rows(self) -> str | None:
        """The parameters with a row for each element; None where rows belong to orbitals."""
        return None if self.use_econf_tebd else "type_embedding"

    def with_table(self, table: TableConfig) -> "DPA2Config":
        """The same with repinit's radial net as a table."""
        return replace(self, repinit=replace(self.repinit, table=table))

    @property
    def table(self) -> TableConfig | None:
        """Repinit's, if it is one."""
        return self.repinit.table

    @property
    def receptive_field(self) -> float:
        """How far (Å) the features of an atom depend on others: each layer hands on what the neighbours saw before."""
        return self.repinit.rcut + self.repformer.nlayers * self.repformer.rcut

    @property
    def width(self) -> int:
        """Features per atom."""
        return self.repformer.g1_dim + (self.repinit.tebd_dim if self.concat_output_tebd else 0)


def _sel(block: Any) -> int:
    return block.sel if isinstance(block, ThreeBodyConfig) else block.nsel
