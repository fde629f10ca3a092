"""The smallest student that is a real model: DPA-1 without attention."""

import potentials

import lamjax
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig

DESCRIPTOR = DPA1Config(rcut=4.0, rcut_smth=1.0, sel=64, neuron=(2, 4), axis_neuron=2, tebd_dim=2)


def case() -> potentials.Case:
    """With random parameters, for the elements of `potentials`."""
    config = PotentialConfig(potentials.ELEMENTS, DESCRIPTOR, (("Default", EnergyHeadConfig(neuron=(4, 4))),))
    potential = lamjax.build(config)
    return potentials.Case(potential, potentials.random_params(potential, 1, mean=0.0))
