"""Forces and virial against finite differences; derivatives of every kind stay finite in awkward structures."""

import functools

import ase
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures

import lamjax

STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}  # first derivative, error of order h⁴
STEP = 2e-4


def derivative(energy) -> float:
    """dE/dt at t = 0 of a function of one number."""
    return sum(weight * energy(k * STEP) for k, weight in STENCIL.items()) / STEP


def moved(atoms, direction, t):
    atoms = atoms.copy()
    atoms.positions += t * direction
    return atoms


def strained(atoms, epsilon, t):
    atoms = atoms.copy()
    atoms.positions += t * atoms.positions @ epsilon
    atoms.cell += t * atoms.cell.array @ epsilon
    return atoms


@pytest.mark.parametrize("name", ["water_box", "unwrapped", "slab", "wire", "molecule"])
def test_forces_are_minus_the_gradient(case, name, rng):
    atoms = structures.ALL[name]()
    forces = potentials.evaluate(case, atoms).forces
    directions = [*rng.normal(size=(3, len(atoms), 3)), *np.eye(3 * len(atoms)).reshape(-1, len(atoms), 3)[:4]]
    for direction in directions:
        slope = derivative(lambda t, d=direction: potentials.evaluate(case, moved(atoms, d, t)).energy)
        assert abs(slope + np.sum(forces * direction)) < 1e-8 * np.linalg.norm(forces) * np.linalg.norm(direction)


@pytest.mark.parametrize("name", ["water_box", "copper", "unwrapped"])
def test_the_virial_is_minus_the_derivative_by_strain(case, name):
    atoms = structures.ALL[name]()
    virial = potentials.evaluate(case, atoms).virial
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        epsilon = np.zeros((3, 3))
        epsilon[a, b] += 0.5
        epsilon[b, a] += 0.5
        slope = derivative(lambda t, e=epsilon: potentials.evaluate(case, strained(atoms, e, t)).energy)
        assert abs(slope + virial[a, b]) < 1e-8 * max(np.abs(virial).max(), 1e-2)


@functools.cache
def training_gradient(potential):
    """Gradient of energy + forces² + virial² by parameters and positions: all that training and relaxation need."""

    def loss(params, positions, system, lists):
        p = lamjax.predict(potential, params, system._replace(positions=positions), lists)
        return p.energy + jnp.sum(p.forces**2) + jnp.sum(p.virial**2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def far_apart():
    return ase.Atoms("OHCu", positions=[(0, 0, 0), (50, 0, 0), (50, 1.5, 0)])


def on_the_cutoff():
    return ase.Atoms("OCu", positions=[(0, 0, 0), (4.0, 0, 0)])


def one_atom():
    return ase.Atoms("Cu", positions=[(0, 0, 0)])


def in_a_line():
    return ase.Atoms("OHO", positions=[(0, 0, 0), (1.2, 0, 0), (2.4, 0, 0)])


def perfect_crystal():
    return ase.build.bulk("Cu", "fcc", a=3.6, cubic=True)


AWKWARD = {f.__name__: f for f in (one_atom, far_apart, on_the_cutoff, in_a_line, perfect_crystal)}


@pytest.mark.parametrize("name", AWKWARD)
def test_gradients_are_finite_in_awkward_structures(case, name):
    system, lists = potentials.prepare(case.potential, AWKWARD[name]())
    value, gradients = training_gradient(case.potential)(case.params, system.positions, system, lists)
    assert np.isfinite(value) and potentials.all_finite(gradients)


def test_gradients_are_finite_and_zero_in_an_empty_row(case):
    system, lists = potentials.prepare(case.potential, one_atom())
    system = system._replace(numbers=np.zeros_like(system.numbers), positions=system.positions + 0.3)
    value, gradients = training_gradient(case.potential)(case.params, system.positions, system, lists)
    assert value == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_padding_takes_no_gradient(case):
    system, lists = potentials.prepare(case.potential, structures.molecule())
    _, (_, by_position) = training_gradient(case.potential)(case.params, system.positions, system, lists)
    assert np.any(by_position[:4]) and not np.any(by_position[4:])


def test_the_training_gradient_is_the_finite_difference(case, rng):
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    gradient = training_gradient(case.potential)
    _, (by_params, _) = gradient(case.params, system.positions, system, lists)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape) / 20, case.params)

    def value(t):
        params = jax.tree.map(lambda x, d: np.asarray(x) + t * d, case.params, direction)
        return float(gradient(params, system.positions, system, lists)[0])

    expected = sum(
        float(np.sum(np.asarray(g) * d)) for g, d in zip(*map(jax.tree.leaves, (by_params, direction)), strict=True)
    )
    assert abs(derivative(value) - expected) < 1e-8 * max(abs(expected), abs(value(0)))


def pair_at(distance: float) -> ase.Atoms:
    """A bent triple with a fourth atom at `distance` from the first, along a direction that is no axis."""
    positions = [(0, 0, 0), (0.9, 0.2, 0.1), (-0.3, 1.1, 0.2)]
    direction = np.array([-0.6, -0.64, 0.48])
    return ase.Atoms("OHHCu", positions=[*positions, distance * direction])


def shells(case):
    return sorted({shell.cutoff for shell in case.potential.shells})


def test_energy_and_forces_are_continuous_at_every_cutoff(case):
    if not case.smooth:
        return check_jump(case)
    for cutoff in shells(case):
        inside, outside = (potentials.evaluate(case, pair_at(cutoff + d)) for d in (-1e-6, 1e-6))
        near = potentials.evaluate(case, pair_at(cutoff - 0.3))
        assert abs(near.energy - outside.energy) > 1e-7  # the atom is felt inside
        scale = np.abs(inside.forces).max()
        expected = np.sum(-(inside.forces + outside.forces)[3] / 2 * [-0.6, -0.64, 0.48]) * 2e-6
        assert abs(outside.energy - inside.energy - expected) < 1e-11 * max(1, scale)
        np.testing.assert_allclose(inside.forces, outside.forces, rtol=0, atol=1e-4 * scale)


def check_jump(case):
    """With a mean in the statistics DeePMD-kit's model jumps at the cutoff: an empty slot counts."""
    inside, outside = (potentials.evaluate(case, pair_at(case.potential.cutoff + d)) for d in (-1e-6, 1e-6))
    assert abs(inside.energy - outside.energy) > 1e-4
