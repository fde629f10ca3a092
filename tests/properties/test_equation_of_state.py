"""Equations of state: the fit against ASE's and a known curve, and B and B' from derivatives against the fit."""

import ase
import ase.eos
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relaxed_crystals as crystals

from lamjax import neighbors, properties
from lamjax.properties import EquationOfStateConfig
from lamjax.properties.minimum import hessian


def test_the_fit_finds_a_curve_of_birch_and_murnaghan():
    v0, e0, b0, derivative = 40.0, -8.0, 0.6, 4.7
    volumes = v0 * np.linspace(0.9, 1.1, 9)
    x = (v0 / volumes) ** (2 / 3)
    energies = e0 + 9 * v0 * b0 / 16 * ((x - 1) ** 3 * derivative + (x - 1) ** 2 * (6 - 4 * x))
    fit = properties.birch_murnaghan(jnp.asarray(volumes), jnp.asarray(energies))
    np.testing.assert_allclose(fit, (v0, e0, b0, derivative, 0), rtol=1e-9, atol=1e-12)


def test_fit_derivatives_and_elastic_constants_agree():
    """Of a hexagonal crystal whose c/a changes with the volume; the fit is that of ASE to the same energies."""
    potential = crystals.potential_of("gupta")
    params = potential.init()
    system, lists = crystals.list_of("gupta")
    config = EquationOfStateConfig(strains=(-0.006, -0.004, -0.002, 0.0, 0.002, 0.004, 0.006), relax=crystals.RELAX)

    @jax.jit
    def found(params):
        crystal = crystals.relaxed(potential, params, system, lists)
        fit = properties.equation_of_state(potential, params, *crystal, config)
        direct = properties.bulk_modulus(potential, params, *crystal)
        here = properties.at_minimum(potential, params, *crystal)
        known = {"hessian": hessian(potential, params, here, None)}  # which takes longest to compile
        rigid = properties.bulk_modulus_at(potential, params, here, shape=False, **known)
        return fit, direct, rigid, properties.elastic_at(potential, params, here, **known)

    fit, direct, rigid, elastic = found(params)
    assert bool(fit.inside) and fit.converged.all() and not fit.overflow and bool(direct.stable)
    assert direct.bulk_modulus == pytest.approx(float(elastic.bulk_reuss), rel=1e-8)
    assert fit.bulk_modulus == pytest.approx(float(direct.bulk_modulus), rel=2e-4)
    assert fit.derivative == pytest.approx(float(direct.derivative), rel=5e-3)
    assert fit.volume == pytest.approx(float(direct.volume), rel=1e-5)
    assert rigid.bulk_modulus >= direct.bulk_modulus
    theirs = ase.eos.EquationOfState(np.asarray(fit.volumes), np.asarray(fit.energies), eos="birchmurnaghan")
    v0, e0, b = theirs.fit()
    np.testing.assert_allclose([fit.volume, fit.energy], [v0, e0], rtol=1e-6)
    assert fit.bulk_modulus == pytest.approx(b / ase.units.GPa, rel=1e-4)


def test_a_molecule_has_no_equation_of_state_and_a_fit_needs_four_volumes():
    potential = crystals.potential_of("lennard_jones")
    both = crystals.room(potential, ase.Atoms("Cu2", positions=[(0, 0, 0), (1.3, 0, 0)]))
    with pytest.raises(ValueError, match="a molecule"):
        properties.equation_of_state(potential, potential.init(), *both)
    with pytest.raises(ValueError, match="at least 4 different strains"):
        EquationOfStateConfig(strains=(0.0, 0.01, 0.01))


def test_the_list_has_room_for_the_smallest_volume():
    potential = crystals.potential_of("lennard_jones")
    system, _ = crystals.list_of("lennard_jones")
    small = system._replace(positions=0.97 * system.positions, cell=0.97 * system.cell)
    lists = properties.compressed(potential, system)
    assert lists.capacities[0] >= neighbors.count(small, potential.shells)[0]
