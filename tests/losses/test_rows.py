"""Derivatives of predictions, forward over reverse, equal those of reverse over reverse."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import data, losses
from lamjax.data import Frame
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig
from lamjax.system import Labels, from_ase

DESCRIPTOR = DPA1Config(rcut=3.5, rcut_smth=0.5, sel=12, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
HEADS = (("Default", EnergyHeadConfig(neuron=(4,), numb_fparam=1)),)
WAYS = (False, True)


def potential_of(forward_over_reverse: bool):
    built = lamjax.build(PotentialConfig(("Si", "C"), DESCRIPTOR, HEADS))

    def atomic_energies(*arguments):
        return built.atomic_energies(*arguments)

    atomic_energies.finite_alone, atomic_energies.forward_over_reverse = True, forward_over_reverse
    return built._replace(atomic_energies=atomic_energies)


@pytest.fixture(scope="module", params=[1, 3], ids=["one row", "three rows"])
def batch(request):
    """Crystals of two sizes, with labels of energy, forces and virial but for one without virial."""
    random, frames = np.random.default_rng(0), []
    for k, size in enumerate((1, 2, 1)):
        atoms = ase.build.bulk("SiC", "zincblende", 4.4).repeat((size, 1, 1))
        atoms.rattle(0.1, seed=k)
        system = from_ase(atoms)._replace(fparam=np.array([0.3 + k]))
        labels = Labels(random.normal(), random.normal(size=(len(atoms), 3)), random.normal(size=(3, 3)), np.ones(3))
        labels = labels._replace(weights=np.array([1.0, 1.0, float(k != 1)]))
        frames.append(Frame(system, labels, f"frame {k}", ("", "", ""), {}))
    plan = data.plan(frames, potential_of(True).shells, 1)
    return next(data.batches(data.pack(frames, plan), 3, seed=None, multiple=request.param))


@pytest.fixture(scope="module")
def params():
    return potential_of(True).init(jax.random.key(1), np.float64)


def of_both_ways(function):
    expected, got = (function(potential_of(way)) for way in WAYS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11), expected, got)
    assert any(np.any(x) for x in jax.tree.leaves(got))


def test_gradients_of_a_loss(batch, params):
    config = losses.LabelLossConfig(start_pref_v=1.0, limit_pref_v=1.0)

    def gradients(potential):
        loss = losses.label_loss(potential, config)
        return jax.jit(jax.grad(lambda p: loss(p, batch)[0]))(params)

    of_both_ways(gradients)


def test_gradients_by_structure_and_parameters_of_every_part_of_a_prediction(batch, params):
    system = jax.tree.map(jnp.asarray, batch.system)

    def number(potential, params, positions, cell, fparam):
        placed = batch._replace(system=system._replace(positions=positions, cell=cell, fparam=fparam))
        parts = losses.predict_rows(potential, params, placed)
        return sum(jnp.sum(jnp.sin(x * (1 + k))) for k, x in enumerate(parts))

    given = (params, system.positions, system.cell, system.fparam)
    of_both_ways(lambda potential: jax.jit(jax.grad(lambda *a: number(potential, *a), (0, 1, 2, 3)))(*given))


def test_curvature_of_a_loss(batch, params):
    """Its second derivatives, reverse over reverse and forward over reverse."""
    along = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)

    def products(potential):
        loss = losses.label_loss(potential)

        def slope(p):
            gradient = jax.grad(lambda p: loss(p, batch)[0])(p)
            return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))

        def forward(p):
            return jax.jvp(jax.grad(lambda p: loss(p, batch)[0]), (p,), (along,))[1]

        return jax.jit(lambda p: (jax.grad(slope)(p), forward(p)))(params)

    of_both_ways(products)


def test_vmapped_over_parameters(batch, params):
    several = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)

    def gradients(potential):
        loss = losses.label_loss(potential)
        return jax.jit(jax.vmap(jax.grad(lambda p: loss(p, batch)[0])))(several)

    of_both_ways(gradients)


def test_forward_derivatives_of_a_loss_are_refused_not_wrong(batch, params):
    loss = losses.label_loss(potential_of(True))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: loss(p, batch)[0], (params,), (params,))
