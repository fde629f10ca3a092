"""Losses of properties and of force constants: gradients, what they leave out, and that they can be learned from."""

import functools

import ase.build
import jax
import jax.numpy as jnp
import many_body
import numpy as np
import optax
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import losses, properties
from lamjax.losses import ForceConstantBatch, PhononTargetConfig, PropertyLossConfig, TargetConfig
from lamjax.relaxation import CellConfig, RelaxConfig

POTENTIAL = many_body.stillinger_weber()
CONFIG = PropertyLossConfig(
    (TargetConfig("bulk_modulus", scale=10.0), TargetConfig("volume_per_atom", weight=2.0, scale=0.5)),
    relax=RelaxConfig(fmax=1e-9, max_steps=1000, cell=CellConfig()),
)


@functools.cache
def batch():
    systems = [lamjax.from_ase(ase.build.bulk("Si", "diamond", a=a)) for a in (5.45, 5.41)]
    targets = [{"bulk_modulus": 95.0, "volume_per_atom": 20.5}, {"bulk_modulus": 98.0}]
    return losses.property_batch(POTENTIAL, systems, targets, CONFIG)


@functools.cache
def step():
    return jax.jit(jax.value_and_grad(losses.property_loss(POTENTIAL, CONFIG), has_aux=True))


def test_training_on_properties_brings_them_to_their_targets():
    """As a user would write it, with optax; the gradient is exact, so that a few steps of Adam suffice."""
    params = POTENTIAL.init()
    scale = {"epsilon": 0.02, "sigma": 0.005, "lam": 0.2}
    optimizer = optax.adam(0.5)
    state, first = optimizer.init(params), None
    for _ in range(25):
        (value, metrics), slope = step()(params, batch())
        first = (value, metrics) if first is None else first
        updates, state = optimizer.update(jax.tree.map(lambda g, s: g * s, slope, scale), state)
        params = jax.tree.map(lambda p, u, s: p + s * u, params, updates, scale)
    assert metrics["n_structures"] == 2 and metrics["n_dropped"] == 0 and metrics["n_unstable"] == 0
    assert value < first[0] / 4
    assert metrics["volume_per_atom_mae"] < first[1]["volume_per_atom_mae"] / 2
    assert metrics["bulk_modulus_mae"] < first[1]["bulk_modulus_mae"] / 2


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    params, along = POTENTIAL.init(), {"epsilon": 0.1, "sigma": 0.05, "lam": -0.5}
    (_, metrics), slope = step()(params, batch())
    assert metrics["bulk_modulus_mae"] == pytest.approx((101.4 - 95 + 101.4 - 98) / 2, abs=0.05)
    assert metrics["volume_per_atom_mae"] == pytest.approx(20.5 - 20.023, abs=1e-3)  # of the one that has a target
    moved = lambda t: float(step()({k: v + t * along[k] for k, v in params.items()}, batch())[0][0])  # noqa: E731
    h = 1e-3
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert sum(float(slope[k]) * along[k] for k in params) == pytest.approx(numeric, rel=1e-6)


def test_the_gradient_of_heat_capacities_is_that_of_finite_differences():
    """Through the force constants of the supercell and the lattice constant, which both follow the parameters."""
    targets = (TargetConfig("heat_capacity_per_atom"),)
    phonons = PhononTargetConfig(repeats=(2, 1, 1), mesh=(2, 1, 1), temperature=150.0)
    config = PropertyLossConfig(targets, CONFIG.relax, "squared", phonons)
    start = lamjax.from_ase(ase.build.bulk("Si", "diamond", a=5.45))
    one = losses.property_batch(POTENTIAL, [start], [{"heat_capacity_per_atom": 9.0}], config)
    run = jax.jit(jax.value_and_grad(losses.property_loss(POTENTIAL, config), has_aux=True))
    params, along = POTENTIAL.init(), {"epsilon": 0.1, "sigma": 0.05, "lam": -0.5}
    (value, metrics), slope = run(params, one)
    assert metrics["n_structures"] == 1 and metrics["n_unstable"] == 0 and 1 < metrics["heat_capacity_per_atom_mae"] < 6
    assert value == pytest.approx(metrics["heat_capacity_per_atom_mae"] ** 2)
    moved = lambda t: float(run({k: v + t * along[k] for k, v in params.items()}, one)[0][0])  # noqa: E731
    h = 1e-3
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert sum(float(slope[k]) * along[k] for k in params) == pytest.approx(numeric, rel=1e-6)


def test_what_does_not_relax_is_left_out():
    """A crystal with an atom on another one."""
    broken = jax.tree.map(jnp.asarray, batch())
    positions = broken.start.positions.at[1, 1].set(broken.start.positions[1, 0] + 1e-5)
    broken = broken._replace(start=broken.start._replace(positions=positions))
    (value, metrics), slope = step()(POTENTIAL.init(), broken)
    assert metrics["n_dropped"] == 1 and metrics["n_structures"] == 1
    assert np.isfinite(value) and all(np.isfinite(x) for x in jax.tree.leaves(slope))


def test_what_becomes_another_crystal_is_left_out():
    """From 2.5 times the volume: where that relaxation ends has nothing to do with the crystal that was given."""
    far = jax.tree.map(jnp.asarray, batch())
    start = far.start._replace(
        positions=far.start.positions.at[1].multiply(1.36), cell=far.start.cell.at[1].multiply(1.36)
    )
    (_, metrics), _ = step()(POTENTIAL.init(), far._replace(start=start))
    assert metrics["n_dropped"] == 1 and metrics["n_structures"] == 1


def test_force_constants_are_learned_from_columns():
    """The loss of the parameters that made the constants is 0; its gradient leads back to them; mixed with others."""
    params = POTENTIAL.init()
    crystal = ase.build.bulk("Si", "diamond", a=5.431)
    system = lamjax.from_ase(crystal)
    cells = properties.supercell(POTENTIAL, system, (2, 1, 1))
    lists = lamjax.allocate(POTENTIAL, system)
    constants = jax.jit(lambda p: properties.force_constants(POTENTIAL, p, system, lists, cells).constants)(params)
    rows = np.flatnonzero(np.all(np.asarray(cells.cells) == 0, axis=1))
    columns = losses.sampled_columns(constants, rows, 3, np.random.default_rng(0))
    large = properties.repeated(system, cells)
    parts = jax.tree.map(lambda x: jnp.asarray(x)[None], (large, cells.neighbors, *columns))
    one = ForceConstantBatch(*parts)
    loss = losses.weighted_sum({"phonons": (2.0, losses.force_constant_loss(POTENTIAL))})
    run = jax.jit(jax.value_and_grad(lambda p: loss(p, {"phonons": one}), has_aux=True))
    (value, metrics), _ = run(params)
    assert value < 1e-18 and metrics["phonons/n_structures"] == 1
    other = params | {"epsilon": 1.02 * params["epsilon"]}
    (value, metrics), slope = run(other)
    squares = float(np.mean(np.sum(np.square(columns[1]), axis=(1, 2)))) / 4
    assert value == pytest.approx(2 * 0.02**2 * squares, rel=1e-6) and slope["epsilon"] > 0


SKEW = np.diag([160.0, 160, 160, 80, 80, 80]) + 60.0 * (np.arange(36).reshape(6, 6) == 1)  # C12 without C21


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TargetConfig("hardness"), "known: volume,"),
        (lambda: TargetConfig("bulk_modulus", unit="Mbar"), "known: GPa, kbar"),
        (lambda: PropertyLossConfig(()), "at least one"),
        (lambda: PropertyLossConfig((TargetConfig("volume"),), relax=RelaxConfig()), "the cell does not relax"),
        (lambda: target(1.01e11), "which no crystal has.*unit"),
        (lambda: target(np.nan), "a finite number"),
        (lambda: target(-1.0), "is -1 GPa, which is not above 0. Leave out"),
        (lambda: target(0.0), "not above 0"),
        (lambda: target(SKEW, "elastic_tensor"), "not symmetric: C12 is 60 GPa and C21 0. Write all 36"),
        (lambda: target([1.0, 2.0]), "a finite number"),
        (lambda: losses.sampled_columns(np.zeros((4, 4)), np.arange(2), 1, np.random.default_rng()), "n_super, 3, 3"),
        (lambda: losses.property_loss(POTENTIAL, CONFIG)({}, {}), "takes a PropertyBatch"),
    ],
)
def test_bad_targets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def target(value, name="bulk_modulus"):
    system, _ = crystals.list_of("stillinger_weber")
    return losses.property_batch(POTENTIAL, [system], [{name: value}], PropertyLossConfig((TargetConfig(name),)))


def test_rounding_of_a_tensor_is_no_asymmetry():
    tensor = np.diag([160.0, 160, 160, 80, 80, 80])
    tensor[0, 1], tensor[1, 0] = 60.0, 62.0
    np.testing.assert_array_equal(target(tensor, "elastic_tensor").targets["elastic_tensor"][0], tensor)


def test_units_are_converted():
    system, _ = crystals.list_of("stillinger_weber")
    config = PropertyLossConfig((TargetConfig("bulk_modulus", unit="kbar"),))
    result = losses.property_batch(POTENTIAL, [system], [{"bulk_modulus": 1014.0}], config)
    assert result.targets["bulk_modulus"][0] == pytest.approx(101.4)
