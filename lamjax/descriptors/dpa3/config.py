"""Configuration of DPA-3. Keys, defaults and meanings are DeePMD-kit's."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from lamjax import nn
from lamjax.config import configuration
from lamjax.descriptors.environment import Block
from lamjax.neighbors import Shell
from lamjax.system import CHARGE_SPIN


@configuration
class RepflowConfig:
    """The message-passing layers over atoms, edges (pairs of neighbours) and angles (pairs of edges)."""

    n_dim: Annotated[int, Field(ge=1)] = 128
    e_dim: Annotated[int, Field(ge=1)] = 64
    a_dim: Annotated[int, Field(ge=1)] = 64
    nlayers: Annotated[int, Field(ge=1)] = 6
    e_rcut: Annotated[float, Field(description="Å, of the edges")] = 6.0
    e_rcut_smth: Annotated[float, Field(description="Å, where their switch starts")] = 5.0
    e_sel: Annotated[int, Field(ge=1, description="neighbours kept, and the divisor of sums")] = 120
    a_rcut: Annotated[float, Field(description="Å, of the angles")] = 4.0
    a_rcut_smth: Annotated[float, Field(description="Å")] = 3.5
    a_sel: Annotated[int, Field(ge=1)] = 20
    a_compress_rate: Annotated[
        int,
        Field(description="what enters the angles: 0 all of atoms and edges, c the a_dim/c and (a_dim//2c) ce of them"),
    ] = 0
    a_compress_e_rate: Annotated[int, Field(description="ce")] = 1
    a_compress_use_split: Annotated[bool, Field(description="the first numbers; else linear maps")] = False
    n_multi_edge_message: Annotated[int, Field(ge=1)] = 1
    axis_neuron: Annotated[int, Field(ge=1)] = 4
    update_angle: bool = True
    update_style: Literal["res_avg", "res_incr", "res_residual"] = "res_residual"
    update_residual: float = 0.1
    update_residual_init: Literal["norm", "const"] = "const"
    fix_stat_std: Annotated[float, Field(description="standard deviation of the environment; 0: from the data")] = 0.3
    optim_update: Annotated[bool, Field(description="how DeePMD-kit computes, not what")] = True
    smooth_edge_update: Annotated[
        bool, Field(description="edges without angles get no message; else their own value, with a jump")
    ] = False
    edge_init_use_dist: Annotated[
        bool, Field(description="edges start from the distance, else from the switched 1/r")
    ] = False
    use_exp_switch: bool = False
    use_dynamic_sel: Annotated[bool, Field(description="divisors are e_sel and a_sel over sel_reduce_factor")] = False
    sel_reduce_factor: float = 10.0
    sequential_update: Annotated[
        bool, Field(description="edges, then angles, then edges, then atoms; else all at once")
    ] = False

    def __post_init__(self) -> None:
        self._check_cutoffs()
        self._check_updates()
        self._check_compression()

    def _check_cutoffs(self) -> None:
        for name in ("rcut", "sel"):
            inner, outer = getattr(self, f"a_{name}"), getattr(self, f"e_{name}")
            _require(
                inner <= outer, f"a_{name} is {inner:g}, e_{name} {outer:g}: angles are among edges. Raise e_{name}."
            )
        for kind in "ea":
            start, cutoff = getattr(self, f"{kind}_rcut_smth"), getattr(self, f"{kind}_rcut")
            least = "above 0" if self.use_exp_switch else "at least 0"
            in_range = (start > 0 or (start == 0 and not self.use_exp_switch)) and start < cutoff
            _require(in_range, f"{kind}_rcut_smth is {start:g}: it must be {least} and below {kind}_rcut {cutoff:g}.")

    def _check_updates(self) -> None:
        if self.use_dynamic_sel:
            _require(self.smooth_edge_update, "use_dynamic_sel needs smooth_edge_update: true.")
            factor = self.sel_reduce_factor
            _require(factor > 0, f"sel_reduce_factor is {factor:g}: it must be above 0.")
        if self.sequential_update:
            _require(self.update_angle, "sequential_update needs update_angle: true.")
            _require(
                self.update_style == "res_residual",
                f"sequential_update needs update_style: res_residual, got {self.update_style}.",
            )

    def _check_compression(self) -> None:
        c, ce, a = self.a_compress_rate, self.a_compress_e_rate, self.a_dim
        _require(c >= 0, f"a_compress_rate is {c}: it must be at least 0.")
        if c == 0 or not self.update_angle:
            return
        _require(ce > 0, f"a_compress_e_rate is {ce}: it must be at least 1.")
        _require(
            a // c > 0 and a // c % 2 == 0 and a * ce % (2 * c) == 0,
            f"a_dim is {a}: with a_compress_rate {c} it must be a multiple of {2 * c}. Change either.",
        )
        if self.a_compress_use_split:
            for kind, width in zip("ne", self.compressed, strict=True):
                dim = getattr(self, f"{kind}_dim")
                _require(width <= dim, f"a_compress_use_split takes {width} numbers of {kind}_dim {dim}. Raise it.")

    @property
    def compressed(self) -> tuple[int, int]:
        """How many numbers of an atom and of an edge enter the angles."""
        if self.a_compress_rate == 0:
            return self.n_dim, self.e_dim
        return self.a_dim // self.a_compress_rate, self.a_dim // (2 * self.a_compress_rate) * self.a_compress_e_rate

    @property
    def divisors(self) -> tuple[float, float]:
        """What sums over edges and over angles are divided by: the configured sel, whatever the arrays' widths are."""
        factor = self.sel_reduce_factor if self.use_dynamic_sel else 1.0
        return self.e_sel / factor, self.a_sel / factor


@configuration
class DPA3Config:
    """The DPA-3 descriptor (Zhang et al., arXiv 2506.01686)."""

    type: Literal["dpa3"] = "dpa3"
    repflow: RepflowConfig = field(default_factory=RepflowConfig)
    concat_output_tebd: bool = False
    activation_function: str = "silu"
    exclude_types: tuple[tuple[int, int], ...] = ()
    env_protection: float = 0.0
    use_econf_tebd: Annotated[bool, Field(description="types are embedded by their electronic configuration")] = False
    use_tebd_bias: bool = False
    use_loc_mapping: Annotated[bool, Field(description="how DeePMD-kit computes, not what")] = True
    add_chg_spin_ebd: Annotated[
        bool, Field(description="charge and spin multiplicity of the structure enter, `System.charge_spin`")
    ] = False
    default_chg_spin: Annotated[tuple[float, float] | None, Field(description="for structures without them")] = None

    def __post_init__(self) -> None:
        nn.activation(self.activation_function)  # raises for one that is not known
        default = self.default_chg_spin
        _require(
            default is None or all(x == int(x) and a <= x <= b for x, (a, b) in zip(default, CHARGE_SPIN, strict=True)),
            f"default_chg_spin is {default}: it must be two whole numbers, charge ({_range(0)}) and spin multiplicity "
            f"({_range(1)}).",
        )

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The edges' cutoff and the angles'."""
        return Shell(self.repflow.e_rcut, self.repflow.e_sel), Shell(self.repflow.a_rcut, self.repflow.a_sel)

    @property
    def receptive_field(self) -> float:
        """How far (Å) the features of an atom depend on others: a cutoff of the edges for each layer."""
        return self.repflow.nlayers * self.repflow.e_rcut

    @property
    def width(self) -> int:
        """Features per atom."""
        return self.repflow.n_dim * (2 if self.concat_output_tebd else 1)

    @property
    def element_rows(self) -> str | None:
        """The parameters with a row for each element; None where rows belong to orbitals."""
        return None if self.use_econf_tebd else "type_embedding"

    @property
    def table(self) -> None:
        """There is no radial net that could be a table."""
        return None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The normalising block: the edges. Its mean is never subtracted."""
        c = self.repflow
        fixed = c.fix_stat_std or None
        return (Block("repflow", c.e_rcut, c.e_rcut_smth, c.e_sel, True, c.use_exp_switch, fixed),)


def _range(k: int) -> str:
    return "{} to {}".format(*CHARGE_SPIN[k])


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
