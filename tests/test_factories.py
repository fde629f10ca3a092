"""What factories make can be sent to other processes, and comes back as what it was."""

import functools
import pickle
import subprocess
import sys

import ase
import cloudpickle
import jax
import numpy as np
import potentials
import pytest

import lamjax
from lamjax import Calculator, classical, dynamics, edit, losses, training
from lamjax.descriptors import DPA1Config, dpa1, dpa2
from lamjax.heads import EnergyHeadConfig, energy_head
from lamjax.potential import PotentialConfig
from lamjax.relaxation import FireConfig, GradientFlowConfig, Implicit, RelaxConfig, minimiser

HEAD = EnergyHeadConfig(neuron=(4, 4))
SMALL = DPA1Config(rcut=4.0, rcut_smth=1.0, sel=8, neuron=(2, 4), axis_neuron=2, tebd_dim=2)


@functools.cache
def two_heads():
    return lamjax.build(PotentialConfig(("Cu", "O"), SMALL, (("A", HEAD), ("B", HEAD))), "B")


def made():
    """One of each kind of thing that is made by a factory."""
    lj, model = classical.lennard_jones(sigma=1.1), two_heads()
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), np.float64))
    preset = potentials.preset_config()
    return {
        "classical": lj,
        "edited": lj._replace(elements=("Cu",)),
        "head": model,
        "other head": lamjax.potential.select(model, "A"),
        "table": edit.tabulate(*edit.select_heads(model, params, "A"), tolerance=1e-2)[0],
        "restricted": edit.restrict_elements(model, params, ["O"])[0],
        "dpa2": lamjax.build(preset),
        "dpa3": lamjax.build(potentials.dpa3_config()),
        "nequip": lamjax.build(potentials.nequip_config()),
        "descriptors": (dpa1(SMALL, ("Cu",)), dpa2(preset.descriptor, ("O", "H"))),
        "energy head": energy_head(HEAD, 10, 2),
        "ensembles": (dynamics.nve(lj), dynamics.nvt(model), dynamics.npt(model)),
        "minimisers": (minimiser(FireConfig()), minimiser(GradientFlowConfig(additive=True))),
        "relaxation": RelaxConfig(adjoint=Implicit()),
        "label loss": losses.label_loss(model),
        "structure losses": (losses.structure_loss(lj), losses.newton_loss(lj), losses.target_force_loss(lj)),
        "distillation": losses.distillation_loss(lj),
        "tasks": losses.heads_loss(model, ["A", "B"], [losses.LabelLossConfig()] * 2),
        "sum": losses.weighted_sum({"a": (0.5, losses.label_loss(lj)), "b": (2.0, losses.structure_loss(lj))}),
        "committee": losses.committee_loss(losses.label_loss(lj)),
        "schedule": training.schedule(training.ScheduleConfig("cosine", 1e-3, 1e-5), 100),
        "optimiser": training.optimizer(training.OptimizerConfig(), 1e-3),
    }


def test_a_copy_is_what_it_is_a_copy_of():
    for name, thing in made().items():
        for module in (pickle, cloudpickle):
            copy = pickle.loads(module.dumps(thing))
            assert copy == thing and hash(copy) == hash(thing), name


def test_different_things_differ():
    a, b = classical.lennard_jones(sigma=1.1), classical.lennard_jones(sigma=1.2)
    assert a != b and a.atomic_energies != b.atomic_energies and a.init != a.atomic_energies
    assert losses.label_loss(a) != losses.label_loss(b)


def test_nothing_is_compiled_again_for_a_copy():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def energy(potential, params, system, lists):
        traced.append(potential)
        return potential.energy(params, system, lists)

    model = two_heads()
    system = lamjax.from_ase(ase.Atoms("CuO", [(0, 0, 0), (1.9, 0, 0)]))
    args = model.init(jax.random.key(0)), system, lamjax.allocate(model, system)
    potential, result = pickle.loads(pickle.dumps((model, args)))
    assert energy(model, *args) == energy(potential, *result) and len(traced) == 1


ELSEWHERE = """
import pickle, sys
calculator, loss, atoms = pickle.load(open(sys.argv[1], "rb"))
atoms.calc = calculator
atoms.positions += 0.0
calculator.reset()
assert calculator.params["sigma"].dtype == "float64", calculator.params  # jax's default float is float32 here
print(repr(float(atoms.get_potential_energy())), type(loss).__name__)
"""


def test_another_process_computes_the_same(tmp_path):
    potential = classical.lennard_jones(sigma=1.1)
    calculator = Calculator((potential, potential.init()))
    atoms = ase.Atoms("Ar3", [(0, 0, 0), (1.2, 0, 0), (0, 1.3, 0.1)])
    atoms.calc = calculator
    expected = atoms.get_potential_energy()
    file = tmp_path / "things.pickle"
    file.write_bytes(pickle.dumps((calculator, losses.label_loss(potential), atoms.copy())))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    energy, kind = done.stdout.split()
    assert float(energy) == pytest.approx(expected, rel=1e-13) and kind == "Made"
