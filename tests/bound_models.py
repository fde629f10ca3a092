"""Potentials of the relaxation tests: small nets that hold structures together, as trained ones do."""

import functools

import jax
import numpy as np

import lamjax
from lamjax import classical
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
from lamjax.neighbors import Shell
from lamjax.potential import Potential, PotentialConfig

# every descriptor by name; a new one is relaxed, tuned and differentiated in all tests by being listed
DESCRIPTORS = {
    "dpa2": DPA2Config(  # three-body block, both attentions
        repinit=RepinitConfig(rcut=3.6, rcut_smth=1.0, nsel=40, neuron=(2, 4), axis_neuron=2, tebd_dim=2),
        three_body=ThreeBodyConfig(rcut=3.0, rcut_smth=1.5, sel=20, neuron=(2, 4)),
        repformer=RepformerConfig(
            rcut=3.0, rcut_smth=1.5, nsel=20, nlayers=2, g1_dim=8, g2_dim=4, axis_neuron=2,
            attn1_hidden=4, attn1_nhead=2, attn2_hidden=4, attn2_nhead=2, update_g1_has_attn=True,
            update_g2_has_attn=True, attn2_has_gate=True, update_style="res_residual", update_residual=0.3,
        ),
    ),
    "dpa3": DPA3Config(  # as published: compressed angles, divisors that are not the numbers of slots
        repflow=RepflowConfig(
            n_dim=8, e_dim=4, a_dim=4, nlayers=2, e_rcut=3.6, e_rcut_smth=1.0, e_sel=40, a_rcut=3.0, a_rcut_smth=1.5,
            a_sel=20, axis_neuron=2, a_compress_rate=1, a_compress_e_rate=2, a_compress_use_split=True,
            smooth_edge_update=True, edge_init_use_dist=True, use_dynamic_sel=True, sel_reduce_factor=4.0,
            update_residual=0.3,
        ),
    ),
    "nequip": NequIPConfig(  # gates, layer norm, features up to l = 1
        rcut=3.6, channels=(4, 2), lmax=1, nlayers=2, embed_dim=4, radial_basis=4, radial_neuron=(4,),
        avg_n_neighbors=12.0, scale=0.3,
    ),
}  # fmt: skip


@functools.cache
def bound(descriptor: str, elements: tuple[str, ...] = ("Si", "B")) -> Potential:
    """A small net of this descriptor plus a Morse potential; a random net alone lets atoms collapse."""
    head = EnergyHeadConfig(neuron=(6, 6))
    net = lamjax.build(PotentialConfig(elements, DESCRIPTORS[descriptor], (("Default", head),)))
    bond = classical.morse(depth=0.6, width=1.5, distance=2.35, cutoff=3.6, switch_start=2.6)

    def init(key, dtype=None):
        return {"net": net.init(key, dtype), "bond": bond.init(key, dtype)}

    def atomic_energies(params, system, neighbors):
        return net.atomic_energies(params["net"], system, neighbors) + bond.atomic_energies(
            params["bond"], system, neighbors
        )

    atomic_energies.finite_alone = True  # both parts are: half the program
    assert net.shells[0] in (Shell(3.6, 40), Shell(3.6, None))
    return Potential("net and bond", net.shells, init, atomic_energies, elements)


@functools.cache
def morse() -> Potential:
    """A soft pair potential whose nearest neighbours are 2.5 Å apart."""
    return classical.morse(depth=0.5, width=1.4, distance=2.5, cutoff=5.0, switch_start=3.5)


@functools.cache
def params_of(potential: Potential, seed: int = 0):
    """The same parameters in every test."""
    return potential.init(jax.random.key(seed), np.float64)
