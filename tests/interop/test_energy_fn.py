"""Energy functions of jax-md as potentials: their own numbers, images, species, and what cannot be one."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
from jax_md import energy, space

import lamjax
from lamjax.interop.jax_md import energy_neighbor_list, from_energy_fn
from lamjax.relaxation import Implicit, RelaxConfig

FREE, _ = space.free()
SIGMA, CUTOFF = 2.3, 5.75  # of 2.5 sigma


def lennard_jones(params, positions, neighbor, **more):
    return PAIRS(positions, neighbor, sigma=params["sigma"], epsilon=params["epsilon"], **more)


_, PAIRS = energy.lennard_jones_neighbor_list(FREE, 10.0, sigma=SIGMA)
INITIAL = {"sigma": SIGMA, "epsilon": 0.1}


def copper(*repeat):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms.repeat(repeat) if repeat else atoms


def predicted(potential, atoms, params=None):
    system = lamjax.from_ase(atoms)
    params = potential.init() if params is None else params
    return jax.jit(lambda p: lamjax.predict(potential, p, system, lamjax.allocate(potential, system)))(params)


@pytest.mark.parametrize("format", ["sparse", "dense"])
def test_a_large_cell_has_jax_mds_own_energy_and_a_small_one_its_share(format):
    potential = from_energy_fn(INITIAL, lennard_jones, CUTOFF, format=format)
    small, large = copper(), copper(4, 4, 4)
    displacement, _ = space.periodic_general(large.cell.array.T, fractional_coordinates=False)
    every_pair = energy.lennard_jones_pair(displacement, sigma=SIGMA, epsilon=INITIAL["epsilon"])
    expected = float(jax.jit(every_pair)(jnp.asarray(large.positions)))
    whole = float(predicted(potential, large).energy)
    assert abs(whole - expected) < 2e-7 * abs(expected)  # jax-md rounds some of its constants to float32
    assert abs(64 * predicted(potential, small).energy - whole) < 1e-12 * abs(whole)


def test_forces_and_virial_come_out_of_the_way_there_and_back():
    """A potential given to jax-md, and its energy function of that list taken as one that knows its own images."""
    potential = from_energy_fn(INITIAL, lennard_jones, CUTOFF)
    atoms = copper(2, 2, 2)
    neighbor_fn, energy_fn = energy_neighbor_list(
        potential, potential.init(), atoms.numbers, atoms.cell.array.T, fractional_coordinates=False
    )
    positions = jnp.asarray(atoms.positions)
    forces = -jax.grad(energy_fn)(positions, neighbor_fn.allocate(positions))
    np.testing.assert_allclose(forces, predicted(potential, atoms).forces, atol=1e-10)


def test_three_body_terms_want_a_dense_list():
    _, silicon = energy.stillinger_weber_neighbor_list(FREE, 10.0)
    make = lambda format: from_energy_fn({}, lambda _, r, n: silicon(r, n), 3.77118, ("Si",), format=format)  # noqa: E731
    assert abs(float(predicted(make("dense"), ase.build.bulk("Si", a=5.431)).energy) / 2 + 4.3365) < 1e-3
    with pytest.raises((ValueError, TypeError, NotImplementedError, IndexError)):
        make("sparse")


def test_species_are_told_from_atomic_numbers():
    def pairs(params, positions, neighbor, species):
        return SPECIES(positions, neighbor, species=species, epsilon=params["epsilon"])

    _, SPECIES = energy.soft_sphere_neighbor_list(
        FREE, 10.0, species=jnp.zeros(1, int), sigma=jnp.asarray([[3.0, 2.0], [2.0, 1.0]]), epsilon=1.0
    )
    potential = from_energy_fn(
        {"epsilon": jnp.asarray([[1.0, 2.0], [2.0, 4.0]])},
        pairs,
        3.0,
        ("Na", "Cl"),
        lambda numbers: {"species": jnp.where(numbers == 17, 1, 0)},
    )
    pair = ase.Atoms("NaCl", [(0, 0, 0), (1.2, 0, 0)])
    assert abs(float(predicted(potential, pair).energy) - 2.0 / 2 * (1 - 1.2 / 2) ** 2) < 1e-12
    with pytest.raises(ValueError, match="Element Cu is not in the model's type map"):
        lamjax.allocate(potential, copper())


def test_it_relaxes_and_learns_as_any_other():
    potential = from_energy_fn(INITIAL, lennard_jones, CUTOFF)
    atoms = ase.build.bulk("Ar", a=3.7)
    atoms.rattle(0.05, seed=2)
    system = lamjax.from_ase(atoms.repeat((2, 1, 1)))
    lists = lamjax.allocate(potential, system)
    config = RelaxConfig(fmax=1e-6, max_steps=300, adjoint=Implicit(tol=1e-10))

    @jax.jit
    def distance(params):
        end = lamjax.relax(potential, params, system, lists, config)
        return end.energy, end.converged

    (_, converged), slope = jax.value_and_grad(distance, has_aux=True)(potential.init())
    assert converged
    for key, value in potential.init().items():
        up, down = (distance(potential.init() | {key: value + h})[0] for h in (1e-5, -1e-5))
        assert abs((up - down) / 2e-5 - slope[key]) < 1e-6 * (1 + abs(slope[key]))


def two_hops(params, positions, neighbor):
    """The embedded sum of a neighbour counts: as in a net that passes messages."""
    centres, others = neighbor.idx
    real = centres < len(positions)
    r = jnp.linalg.norm(positions[centres] - positions[others] + 1e-9, axis=1)
    near = jnp.where(real & (r < 4.0), (1 - r / 4.0) ** 2, 0)
    density = jnp.zeros(len(positions)).at[centres].add(near, mode="drop")
    return jnp.sum(jnp.zeros(len(positions)).at[centres].add(near * density[others], mode="drop"))


def test_what_is_no_sum_over_atoms_is_refused():
    with pytest.raises(ValueError, match=r"a net that passes messages.*interop\.mlip"):
        from_energy_fn({}, two_hops, 4.0)
    with pytest.raises(ValueError, match="the cutoff is another one"):
        from_energy_fn(INITIAL, lennard_jones, 3.0)


def test_it_is_the_same_embedded_atom_potential():
    """Energy, forces, virial and the gradient by all parameters of `potentials.gupta`, whose root nobody guards."""
    theirs, ours = potentials.gupta_of_jax_md(), potentials.gupta()
    atoms = ase.build.bulk("Cu", cubic=True, a=3.2)
    atoms.rattle(0.1, seed=1)
    system = lamjax.from_ase(atoms)
    lists = lamjax.allocate(ours, system)

    def both(potential):
        params = ours.init()
        energy = lambda p: potential.energy(p, system, lists)  # noqa: E731
        return lamjax.predict(potential, params, system, lists), jax.grad(energy)(params)

    for one, other in zip(*(jax.tree.leaves(jax.jit(both, static_argnums=0)(p)) for p in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("format", ["sparse", "dense"])
@pytest.mark.parametrize("width", [0, 1, 4])
def test_an_atom_without_neighbours_has_its_own_energy_whatever_the_width_of_its_list(width, format):
    def energy_fn(params, positions, neighbor):
        return PAIRS(positions, neighbor, sigma=params["sigma"], epsilon=params["epsilon"]) + 0.5 * len(positions)

    potential = from_energy_fn(INITIAL, energy_fn, CUTOFF, format=format)
    system = lamjax.from_ase(ase.Atoms("Cu", [(0, 0, 0)]))
    lists = lamjax.neighbors.allocate(system, potential.shells, (width,))
    assert abs(potential.energy(potential.init(), system, lists) - 0.5) < 1e-12
