"""Units and Voigt order against ASE's own."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from lamjax import units


def test_voigt_order_is_that_of_ase(rng):
    tensor = rng.normal(size=(3, 3))
    tensor = tensor + tensor.T
    voigt = units.to_voigt(tensor)
    np.testing.assert_array_equal(voigt, full_3x3_to_voigt_6_stress(tensor))
    np.testing.assert_array_equal(units.from_voigt(voigt), voigt_6_to_full_3x3_stress(voigt))
    np.testing.assert_array_equal(units.from_voigt(voigt), tensor)


def test_voigt_of_a_batch_and_inside_jit(rng):
    batch = rng.normal(size=(4, 2, 6))
    np.testing.assert_array_equal(units.to_voigt(units.from_voigt(batch)), batch)
    np.testing.assert_array_equal(jax.jit(lambda x: units.to_voigt(units.from_voigt(x)))(jnp.asarray(batch)), batch)


def test_the_sign_of_the_stress_is_that_of_ase(rng):
    stress = units.from_voigt(rng.normal(size=6))
    atoms = ase.Atoms("H", cell=[2, 3, 4], pbc=True)
    virial = units.stress_to_virial(stress, atoms.get_volume())
    back = units.virial_to_stress(virial, atoms.get_volume())
    atoms.calc = SinglePointCalculator(atoms, stress=units.to_voigt(back))
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-15)
    assert np.all(np.sign(virial) == -np.sign(stress))


def test_boundary_units():
    """CODATA: 1 eV/Å³ = 160.2176634 GPa, k_B = 8.617333e-5 eV/K; 1 Å sqrt(amu/eV) = 10.1805 fs."""
    np.testing.assert_allclose(1 / units.GPA, 160.2176634, rtol=1e-6)
    np.testing.assert_allclose(units.KBAR * 10, units.GPA, rtol=1e-15)
    np.testing.assert_allclose(units.KB, 8.617333e-5, rtol=1e-6)
    np.testing.assert_allclose(1 / units.FS, 10.18051, rtol=1e-6)
