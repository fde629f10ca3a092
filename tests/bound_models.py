"""Potentials of the relaxation tests: a small DPA-2 that holds structures together, as a trained one does."""

import functools

import jax
import numpy as np

import lamjax
from lamjax import classical
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.neighbors import Shell
from lamjax.potential import Potential, PotentialConfig


@functools.cache
def bound_dpa2(elements: tuple[str, ...] = ("Si", "B")) -> Potential:
    """DPA-2 (three-body block, both attentions) plus a Morse potential; a random net alone lets atoms collapse."""
    net = lamjax.build(
        PotentialConfig(
            elements,
            DPA2Config(
                repinit=RepinitConfig(rcut=3.6, rcut_smth=1.0, nsel=40, neuron=(2, 4), axis_neuron=2, tebd_dim=2),
                three_body=ThreeBodyConfig(rcut=3.0, rcut_smth=1.5, sel=20, neuron=(2, 4)),
                repformer=RepformerConfig(
                    rcut=3.0, rcut_smth=1.5, nsel=20, nlayers=2, g1_dim=8, g2_dim=4, axis_neuron=2,
                    attn1_hidden=4, attn1_nhead=2, attn2_hidden=4, attn2_nhead=2, update_g1_has_attn=True,
                    update_g2_has_attn=True, attn2_has_gate=True, update_style="res_residual", update_residual=0.3,
                ),
            ),
            (("Default", EnergyHeadConfig(neuron=(6, 6))),),
        )
    )  # fmt: skip
    bond = classical.morse(depth=0.6, width=1.5, distance=2.35, cutoff=3.6, switch_start=2.6)

    def init(key, dtype=None):
        return {"net": net.init(key, dtype), "bond": bond.init(key, dtype)}

    def atomic_energies(params, system, neighbors):
        return net.atomic_energies(params["net"], system, neighbors) + bond.atomic_energies(
            params["bond"], system, neighbors
        )

    atomic_energies.finite_alone = True  # both parts are: half the program
    assert net.shells[0] == Shell(3.6, 40)
    return Potential("net and bond", net.shells, init, atomic_energies, elements)


@functools.cache
def morse() -> Potential:
    """A soft pair potential whose nearest neighbours are 2.5 Å apart."""
    return classical.morse(depth=0.5, width=1.4, distance=2.5, cutoff=5.0, switch_start=3.5)


@functools.cache
def params_of(potential: Potential, seed: int = 0):
    """The same parameters in every test."""
    return potential.init(jax.random.key(seed), np.float64)
