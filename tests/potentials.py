"""Every potential that must keep the contract of tests/contract; a new one is tested by being listed in CASES."""

import functools
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
import structures

import lamjax
from lamjax import classical, neighbors, numerics
from lamjax.descriptors import (
    DPA2Config,
    DPA3Config,
    NequIPConfig,
    RepflowConfig,
    RepformerConfig,
    RepinitConfig,
    ThreeBodyConfig,
)
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.jax_md import from_energy_fn
from lamjax.neighbors import Shell
from lamjax.potential import Params, Potential, PotentialConfig, Prediction
from lamjax.system import System, host_system, pad

ELEMENTS = ("O", "H", "Cu")


class Case(NamedTuple):
    """A potential with parameters, and what is known of it."""

    potential: Potential
    params: Any
    first_atom_counts: bool = False  # empty slots have the type of atom 0, as in DeePMD-kit where the mean is not zero
    smooth: bool = True  # no jump where a neighbour crosses a cutoff


def preset_config() -> PotentialConfig:
    """The form of DeePMD-kit's example models: three-body block, residual vectors, gated attention of pairs."""
    return PotentialConfig(
        ELEMENTS,
        DPA2Config(
            repinit=RepinitConfig(rcut=4.0, rcut_smth=1.0, nsel=48, neuron=(2, 4), axis_neuron=2, tebd_dim=3),
            three_body=ThreeBodyConfig(rcut=2.8, rcut_smth=1.2, sel=24, neuron=(2, 4)),
            repformer=RepformerConfig(
                **_SMALL, attn2_has_gate=True, update_g1_has_attn=False, update_g2_has_g1g1=False,
                update_style="res_residual", update_residual=0.5,
            ),
        ),
        (("Default", EnergyHeadConfig(neuron=(6, 6))),),
    )  # fmt: skip


def default_config() -> PotentialConfig:
    """All of DeePMD-kit's defaults but small, with statistics that have a mean."""
    return PotentialConfig(
        ELEMENTS,
        DPA2Config(
            repinit=RepinitConfig(
                rcut=4.0, rcut_smth=1.0, nsel=48, neuron=(2, 4), axis_neuron=2, tebd_dim=3, set_davg_zero=False
            ),
            repformer=RepformerConfig(**_SMALL, set_davg_zero=False),
        ),
        (("Default", EnergyHeadConfig(neuron=(6, 6))),),
    )


def dpa3_config() -> PotentialConfig:
    """The form of the published DPA-3 models, but with the switch that ends at the cutoff, and an update of angles."""
    return PotentialConfig(
        ELEMENTS,
        DPA3Config(
            repflow=RepflowConfig(
                n_dim=6, e_dim=4, a_dim=4, nlayers=3, e_rcut=4.0, e_rcut_smth=1.0, e_sel=480, a_rcut=2.8,
                a_rcut_smth=1.2, a_sel=240, a_compress_rate=1, a_compress_e_rate=2, a_compress_use_split=True,
                axis_neuron=2, use_dynamic_sel=True, smooth_edge_update=True, edge_init_use_dist=True,
                update_residual=0.5,
            ),
        ),
        (("Default", EnergyHeadConfig(neuron=(6, 6), activation_function="silu")),),
    )  # fmt: skip


def nequip_config() -> PotentialConfig:
    """The form of Nequix's models, with fewer channels."""
    return PotentialConfig(
        ELEMENTS,
        NequIPConfig(
            rcut=4.0, channels=(4, 3, 2), lmax=2, nlayers=3, embed_dim=4, radial_basis=4, radial_neuron=(6,),
            avg_n_neighbors=20.0, scale=0.7,
        ),
        (("Default", EnergyHeadConfig(neuron=())),),
    )  # fmt: skip


_SMALL = {
    "rcut": 3.4, "rcut_smth": 1.5, "nsel": 32, "nlayers": 2, "g1_dim": 6, "g2_dim": 4, "axis_neuron": 2,
    "attn1_hidden": 3, "attn1_nhead": 2, "attn2_hidden": 3, "attn2_nhead": 2,
}  # fmt: skip


def random_params(potential: Potential, seed: int, mean: float) -> Params:
    """Parameters of which none is zero or one; statistics with a mean in the radial column. Made without jax: fast."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(potential.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) / max(x.shape[:-1], default=4) ** 0.5, shapes)
    for block in ("repinit", "three_body", "repformer", "repflow"):
        if block in params.descriptor:
            params.descriptor[block]["statistics"] = _statistics(mean)
    return jax.tree.map(jnp.asarray, params)


def _statistics(mean: float) -> dict:
    n = len(ELEMENTS)
    radial = np.linspace(0.5, 1.5, n)
    rows = {"mean": np.zeros((n, 4)), "stddev": radial[:, None] * [0.3, 0.2, 0.2, 0.2]}
    rows["mean"][:, 0] = mean * radial
    return rows


@functools.cache
def gupta(cutoff: float = 4.0) -> Potential:
    """E_i = A Σ_j exp(-p x) - c sqrt(Σ_j exp(-2 q x)), x = r/r0 - 1, as anybody would write it: no root is guarded.

    Cleri, Rosato, Phys. Rev. B 48, 22 (1993). The sum under the root is switched off by the square of a switch.
    """
    initial = {"a": 0.15, "p": 9.0, "c": 0.9, "q": 2.3, "r0": 1.4}

    def init(key=None, dtype=None):
        return {name: jnp.asarray(value, dtype or float) for name, value in initial.items()}

    def atomic_energies(params, system, lists):
        r = numerics.safe_norm(neighbors.displacements(system, lists))
        x, w = r / params["r0"] - 1, numerics.switch(r, 0.7 * cutoff, cutoff)
        repulsion = jnp.sum(jnp.where(lists.mask, w * jnp.exp(-params["p"] * x), 0), axis=1)
        density = jnp.sum(jnp.where(lists.mask, (w * jnp.exp(-params["q"] * x)) ** 2, 0), axis=1)
        return params["a"] * repulsion - params["c"] * jnp.sqrt(density)

    return Potential(("gupta", cutoff), (Shell(cutoff),), init, atomic_energies, receptive_field=cutoff)


def gupta_of_jax_md(cutoff: float = 4.0) -> Potential:
    """The same by `jax_md.energy.eam_neighbor_list`."""
    import jax_md

    def energy_fn(params, positions, neighbor):
        def weighted(r, exponent):
            return numerics.switch(r, 0.7 * cutoff, cutoff) * jnp.exp(-exponent * (r / params["r0"] - 1))

        _, energy = jax_md.energy.eam_neighbor_list(
            jax_md.space.free()[0],
            10.0,
            lambda r: weighted(r, params["q"]) ** 2,
            lambda density: -params["c"] * jnp.sqrt(density),
            lambda r: 2 * params["a"] * weighted(r, params["p"]),
            cutoff,
        )
        return energy(positions, neighbor)

    return from_energy_fn(gupta(cutoff).init(), energy_fn, cutoff)


@functools.cache
def cases() -> dict[str, Case]:
    """All potentials by name."""
    preset, default = lamjax.build(preset_config()), lamjax.build(default_config())
    dpa3, nequip = lamjax.build(dpa3_config()), lamjax.build(nequip_config())
    lj = classical.lennard_jones(sigma=1.2, epsilon=0.1, cutoff=4.0)
    morse = classical.morse(depth=0.3, width=1.5, distance=1.4, cutoff=4.0)
    return {
        "dpa2_preset": Case(preset, random_params(preset, 1, mean=0.0)),
        "dpa2_default": Case(default, random_params(default, 2, mean=0.3), first_atom_counts=True, smooth=False),
        "dpa3": Case(dpa3, random_params(dpa3, 3, mean=0.0)),
        "nequip": Case(nequip, random_params(nequip, 4, mean=0.0)),
        "lennard_jones": Case(lj, lj.init()),
        "morse": Case(morse, morse.init()),
        "gupta": Case(gupta(), gupta().init()),
        "jax_md": Case(gupta_of_jax_md(), gupta().init()),
    }


NAMES = ("dpa2_preset", "dpa2_default", "dpa3", "nequip", "lennard_jones", "morse", "gupta", "jax_md")


def prepare(potential: Potential, atoms: ase.Atoms, n_atoms: int = structures.N_ATOMS, extra: int = 0):
    """System and neighbours in the one shape that all tests of a potential share, on the host."""
    system = pad(host_system(atoms), n_atoms)
    widths = zip((48, 32, 24), potential.shells, strict=False)
    capacities = tuple((48 if shell.sel is None else min(shell.sel, most)) + extra for most, shell in widths)
    lists = neighbors.host_neighbors(system, potential.shells, capacities)
    assert not lists.overflow and not lists.truncated, f"the shape is too narrow: {lists.largest_counts}"
    return system, lists._replace(offsets=np.zeros((0, 3), np.int32))


@functools.cache
def compiled(potential: Potential):
    """`predict` of one potential, compiled once for the shared shape."""
    return jax.jit(functools.partial(lamjax.predict, potential))


def evaluate(case: Case, atoms: ase.Atoms) -> Prediction:
    """The prediction for a structure, padding removed, as numpy arrays."""
    result = jax.tree.map(np.asarray, compiled(case.potential)(case.params, *prepare(case.potential, atoms)))
    return result._replace(forces=result.forces[: len(atoms)], atomic_energies=result.atomic_energies[: len(atoms)])


def real_atoms(system: System):
    """Indices of the atoms that are no padding."""
    return np.flatnonzero(np.asarray(system.numbers))


def all_finite(tree) -> bool:
    """True if nothing in the tree is NaN or infinite."""
    leaves = [x for x in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.all(jnp.isfinite(x))) for x in leaves)
