"""Padding, batches and compilation: the shape of the arrays changes no number, and geometries cost no compilation."""

import functools

import ase
import chex
import jax
import numpy as np
import potentials
import pytest
import structures

import lamjax
from lamjax import classical, pytree
from lamjax.interop.jax_md import EnergyFnConfig, from_energy_fn

RTOL = 1e-12


def assert_close(got, expected):
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=RTOL * max(np.abs(e).max(), 1))


@pytest.mark.parametrize("name", ["triclinic", "molecule"])
def test_padding_changes_nothing(case, name):
    atoms = structures.ALL[name]()
    expected = potentials.evaluate(case, atoms)
    system, lists = potentials.prepare(case.potential, atoms, n_atoms=structures.N_ATOMS + 3, extra=5)
    system = system._replace(positions=np.where(system.numbers[:, None] > 0, system.positions, 1.7))
    got = potentials.compiled(case.potential)(case.params, system, lists)
    assert not np.any(got.forces[len(atoms) :]) and not np.any(got.atomic_energies[len(atoms) :])
    real = slice(0, len(atoms))
    assert_close(got._replace(forces=got.forces[real], atomic_energies=got.atomic_energies[real]), expected)


def test_a_batch_is_a_loop(case):
    prepared = [potentials.prepare(case.potential, make()) for make in structures.ALL.values()]
    one = potentials.compiled(case.potential)
    expected = pytree.stack([one(case.params, *p) for p in prepared])
    batched = jax.jit(jax.vmap(functools.partial(lamjax.predict, case.potential), in_axes=(None, 0, 0)))
    assert_close(batched(case.params, *pytree.stack(prepared)), expected)


def test_ten_geometries_are_one_trace(case, rng):
    atoms = structures.water_box()

    def predict(params, system, lists):
        return lamjax.predict(case.potential, params, system, lists)

    chex.clear_trace_counter()
    predict = jax.jit(chex.assert_max_traces(predict, n=1))
    energies = set()
    for _ in range(10):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        energies.add(float(predict(case.params, *potentials.prepare(case.potential, atoms)).energy))
    assert len(energies) == 10


def test_the_shared_energy_is_that_of_predict(case):
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    energy = jax.jit(case.potential.energy)(case.params, system, lists)
    expected = potentials.evaluate(case, structures.triclinic())
    assert abs(energy - expected.energy) < 1e-12 * max(1, abs(expected.energy))
    assert abs(expected.atomic_energies.sum() - expected.energy) < 1e-12 * max(1, abs(expected.energy))


def test_precision_follows_positions_and_parameters(case, dtype):
    atoms = structures.triclinic()
    system, lists = potentials.prepare(case.potential, atoms)
    got = potentials.compiled(case.potential)(pytree.cast(case.params, dtype), pytree.cast(system, dtype), lists)
    assert got.forces.dtype == dtype and got.virial.dtype == dtype and got.energy.dtype == np.float64
    expected = potentials.evaluate(case, atoms)
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype.name]
    for g, e in zip((got.energy, got.forces[: len(atoms)], got.virial), expected[:3], strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance * np.abs(e).max())


def test_allocate_is_wide_enough(case, atoms):
    system = jax.tree.map(jax.numpy.asarray, lamjax.from_ase(atoms))
    lists = lamjax.allocate(case.potential, system)
    assert not lists.overflow and not lists.truncated
    assert all(f <= width <= f + 4 for f, width in zip(lists.largest_counts, lists.capacities, strict=True))


def test_equal_configs_are_one_potential(case):
    if isinstance(case.potential.config, lamjax.PotentialConfig):
        again = lamjax.build(type(case.potential.config)(**vars(case.potential.config)))
    elif isinstance(case.potential.config, classical.PairConfig):
        again = rebuilt(case.potential.config)
    elif isinstance(case.potential.config, EnergyFnConfig):
        again = from_energy_fn(dict(case.params), case.potential.config.energy_fn, case.potential.config.cutoff)
    else:
        again = potentials.gupta()
    assert again is case.potential
    assert hash(again.config) == hash(case.potential.config)


def rebuilt(config):
    factory = getattr(classical, config.type)
    return factory(**dict(config.initial), cutoff=config.cutoff)


def test_an_empty_row_is_zero(case):
    system, lists = potentials.prepare(case.potential, ase.Atoms("O", positions=[(0, 0, 0)]))
    empty = system._replace(numbers=np.zeros_like(system.numbers))
    got = potentials.compiled(case.potential)(case.params, empty, lists)
    assert not any(np.any(x) for x in got)
