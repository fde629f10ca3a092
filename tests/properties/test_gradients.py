"""Gradients of properties by the parameters are those of the re-relaxed property, by finite differences."""

import dataclasses

import ase
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import properties, relaxation
from lamjax.properties import EquationOfStateConfig
from lamjax.properties.minimum import hessian
from lamjax.relaxation import CellConfig, RelaxConfig


def test_elastic_constants_bulk_modulus_and_lattice():
    """Of a hexagonal crystal, whose c/a and inner strain answer; potential with a root of a sum of neighbours."""
    potential = crystals.potential_of("gupta")
    start = crystals.list_of("gupta")

    def measure(params):
        crystal = crystals.relaxed(potential, params, *start)
        here = properties.at_minimum(potential, params, *crystal)
        known = {"hessian": hessian(potential, params, here, None)}
        elastic = properties.elastic_at(potential, params, here, **known)
        bulk = properties.bulk_modulus_at(potential, params, here, **known)
        lattice = properties.lattice_at(here)
        parts = jnp.array([elastic.tensor[0, 0], elastic.tensor[0, 1], elastic.tensor[2, 2], elastic.tensor[3, 3]])
        means = jnp.array([elastic.shear, elastic.anisotropy, elastic.bulk_reuss, bulk.bulk_modulus, bulk.derivative])
        return jnp.concatenate([parts, means, lattice.lengths[1:], lattice.density[None], lattice.energy[None]])

    exact, numeric = crystals.slopes(measure, potential.init())
    assert exact == pytest.approx(numeric, rel=1e-6) and abs(numeric) > 0.1


def test_frequencies_and_heat_capacity():
    """Of silicon, in a supercell that follows the lattice constant."""
    potential = crystals.potential_of("stillinger_weber")
    start = crystals.list_of("stillinger_weber")
    cells = properties.supercell(potential, start[0], (2, 2, 1))
    qpoints = np.array([(0.25, 0.1, 0.4), (0.5, 0, 0)])

    def measure(params):
        crystal = crystals.relaxed(potential, params, *start)
        phonons = properties.phonons(potential, params, *crystal, cells, qpoints)
        heat = properties.thermodynamics(phonons, jnp.array([150.0]))
        return jnp.concatenate(
            [heat.heat_capacity, heat.free_energy, phonons.frequencies[0], phonons.frequencies[1, -1:]]
        )

    exact, numeric = crystals.slopes(measure, potential.init())
    assert exact == pytest.approx(numeric, rel=1e-6) and abs(numeric) > 0.1


@pytest.mark.slow
def test_the_bulk_modulus_that_a_net_gives():
    """A DPA-2: volume and relaxed-ion bulk modulus of a crystal with two atoms, by differences of relaxed crystals."""
    potential = models.bound("dpa2")
    params, relax = models.params_of(potential), RelaxConfig(fmax=1e-9, max_steps=3000, cell=CellConfig())
    start = lamjax.from_ase(ase.Atoms("SiB", 2.6 * np.array([(0, 0, 0), (0.5,) * 3]), cell=[2.6] * 3, pbc=True))

    @jax.jit
    def run(params, system, lists):
        def measure(params):
            volume = properties.lattice(potential, params, system, lists).volume
            return jnp.stack([volume, properties.elastic_tensor(potential, params, system, lists).bulk])

        return measure(params), jax.jacrev(measure)(params)

    def relaxed(params):
        (end,) = relaxation.relax_structures(potential, params, [start], relax)
        assert end.converged
        return run(params, end.system, lamjax.allocate(potential, end.system))

    along = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=float)).reshape(x.shape), params)
    slope = relaxed(params)[1]
    exact = sum(np.tensordot(a, d, axes=np.ndim(d)) for a, d in zip(*map(jax.tree.leaves, (slope, along)), strict=True))
    h = 3e-5
    one, other = (relaxed(jax.tree.map(lambda x, d, t=t: x + t * d, params, along))[0] for t in (h, -h))
    np.testing.assert_allclose(exact, (one - other) / (2 * h), rtol=3e-6)
    assert np.all(np.abs(exact) > 1)


@pytest.mark.slow
def test_the_fitted_equation_of_state():
    """Its volumes follow the volume of the crystal; ions and shape relax at each."""
    potential = crystals.potential_of("lennard_jones")
    start = crystals.list_of("lennard_jones")
    config = EquationOfStateConfig(strains=(-0.02, -0.01, 0.0, 0.01, 0.02), relax=crystals.RELAX)

    def measure(params):
        crystal = crystals.relaxed(potential, params, *start)
        fit = properties.equation_of_state(potential, params, *crystal, config)
        return jnp.array([fit.volume, fit.energy, fit.bulk_modulus, fit.derivative])

    exact, numeric = crystals.slopes(measure, potential.init(), seed=4)
    assert exact == pytest.approx(numeric, rel=1e-6) and abs(numeric) > 0.1


def test_a_vacancy_and_a_surface_follow_the_lattice_constant():
    """Supercell and slab are those of the crystal that the changed parameters give."""
    potential = crystals.potential_of("lennard_jones")
    structures = crystals.fcc(), crystals.vacancy(crystals.fcc()), crystals.slab()
    bulk, *others = (crystals.list_of("lennard_jones", atoms) for atoms in structures)
    config = dataclasses.replace(crystals.RELAX, cell=None)

    def measure(params):
        crystal = crystals.relaxed(potential, params, *bulk)
        ends = []
        for (system, lists), axes in zip(others, ([0, 1, 2], [0, 1]), strict=True):
            stretch = crystal[0].cell[0, 1] / bulk[0].cell[0, 1]
            cell = system.cell.at[jnp.array(axes)].multiply(stretch)
            start = system._replace(positions=system.positions * stretch, cell=cell)
            ends.append(crystals.relaxed(potential, params, start, lists, config))
        hole = properties.vacancy_formation(potential, params, crystal, ends[0])
        surface = properties.surface_energy(potential, params, crystal, ends[1])
        return jnp.array([hole.energy, surface.energy])

    exact, numeric = crystals.slopes(measure, potential.init(), seed=4)
    assert exact == pytest.approx(numeric, rel=1e-6) and abs(numeric) > 0.1
