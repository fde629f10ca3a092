"""The ASE calculator: numbers, units, errors, and how often it compiles."""

import subprocess
import sys
import warnings
from pathlib import Path

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import lamjax
from lamjax import classical
from lamjax.calculator import Calculator
from lamjax.neighbors import Shell


def argon() -> ase.Atoms:
    """Two atoms of argon in a skewed cell, away from equilibrium."""
    scaled = [(0, 0, 0), (0.48, 0.53, 0.46)]
    return ase.Atoms("Ar2", scaled_positions=scaled, cell=[5.2, 5.4, 5.6, 80, 95, 104], pbc=True)


@pytest.fixture
def lennard_jones() -> Calculator:
    potential = classical.lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=8.0)
    return Calculator((potential, potential.init()))


@pytest.mark.parametrize("name", ["dpa2_preset", "morse"])
def test_numbers_are_those_of_predict(name):
    case, atoms = potentials.cases()[name], structures.triclinic()
    atoms.calc = Calculator((case.potential, case.params))
    expected = potentials.evaluate(case, atoms)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.atomic_energies, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), -expected.virial / atoms.get_volume(), rtol=0, atol=1e-13)


def test_stress_is_the_numerical_stress_of_ase(lennard_jones):
    atoms = argon()
    atoms.calc = lennard_jones
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_relaxation_by_ase(lennard_jones):
    atoms = argon()
    atoms.calc = lennard_jones
    before = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-6, steps=100)
    assert atoms.get_potential_energy() < before and np.abs(atoms.get_forces()).max() < 1e-6


def test_a_changed_structure_is_computed_anew(lennard_jones):
    atoms = argon()
    atoms.calc = lennard_jones
    first = atoms.get_forces().copy()
    atoms.positions[1] += (0.3, -0.2, 0.1)
    second = atoms.get_forces().copy()
    atoms.positions[1] -= (0.3, -0.2, 0.1)
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_allclose(atoms.get_forces(), first, rtol=0, atol=1e-13)
    larger = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True)
    larger.calc = lennard_jones
    assert larger.get_potential_energies() == pytest.approx([larger.get_potential_energy() / 4] * 4)


def traced(calculator) -> list:
    """A list that gets one entry each time the calculator's potential is traced."""
    traces, inner = [], calculator.potential.atomic_energies

    def atomic_energies(*args):
        traces.append(1)
        return inner(*args)

    potential = calculator.potential._replace(atomic_energies=atomic_energies)
    calculator.__init__((potential, calculator.params))
    return traces


def test_twenty_steps_of_dynamics_compile_at_most_twice(lennard_jones, rng):
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True)
    traces = traced(lennard_jones)
    atoms.calc = lennard_jones
    atoms.set_velocities(rng.normal(0, 0.03, atoms.positions.shape))  # about 400 K
    start = atoms.get_total_energy()
    VelocityVerlet(atoms, timestep=1 * units.fs).run(20)
    assert len(traces) <= 2
    assert abs(atoms.get_total_energy() - start) < 1e-5
    for factor in np.linspace(1.0, 0.9, 11):  # a shrinking cell has more neighbours and other images
        atoms.set_cell(5.3 * factor * np.eye(3), scale_atoms=True)
        atoms.get_stress()
    assert len(traces) <= 4


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
def test_no_stress_without_a_volume(lennard_jones, pbc):
    atoms = argon()
    atoms.pbc = pbc
    atoms.calc = lennard_jones
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="pbc"):
        atoms.get_stress()


def test_unknown_elements_are_named():
    case = potentials.cases()["dpa2_preset"]
    atoms = ase.Atoms("OAu", positions=[(0, 0, 0), (2, 0, 0)])
    atoms.calc = Calculator((case.potential, case.params))
    with pytest.raises(ValueError, match=r"Au .*\[O, H, Cu\]"):
        atoms.get_potential_energy()


def test_coinciding_atoms_are_named(lennard_jones):
    atoms = ase.Atoms("Ar2", positions=np.zeros((2, 3)))
    atoms.calc = lennard_jones
    with pytest.raises(FloatingPointError, match="closest atoms are 0 Å apart"):
        atoms.get_potential_energy()


def test_parameters_that_are_not_finite_are_named(lennard_jones):
    atoms = argon()
    atoms.calc = Calculator((lennard_jones.potential, {"sigma": float("nan"), "epsilon": 1.0}))
    with pytest.raises(FloatingPointError, match="parameters are not all finite"):
        atoms.get_potential_energy()


def test_cut_neighbours_are_reported_once(lennard_jones):
    potential = lennard_jones.potential._replace(shells=(Shell(8.0, 12),))
    atoms = argon()
    atoms.calc = Calculator((potential, lennard_jones.params))
    with pytest.warns(UserWarning, match="keeps the nearest"):
        before = atoms.get_potential_energy()
    atoms.positions[0] += 0.1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert atoms.get_potential_energy() != before  # it was computed, and nothing was said again
    assert caught == []


def test_single_precision(lennard_jones):
    atoms, single = argon(), argon()
    atoms.calc = lennard_jones
    single.calc = Calculator((lennard_jones.potential, lennard_jones.params), dtype="float32")
    assert single.calc.params["sigma"].dtype == np.float32
    got, expected = single.get_forces(), atoms.get_forces()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.any(got != expected)


SINGLE_PRECISION_SCRIPT = """
import ase, jax
import lamjax
from lamjax import classical
from lamjax.calculator import Calculator
assert not jax.config.jax_enable_x64
potential = classical.lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=8.0)
params = {"sigma": 3.4, "epsilon": 0.0104}
atoms = ase.Atoms("Ar3", positions=[(0, 0, 0), (3.7, 0.1, 0), (0.2, 3.9, 0.3)])
atoms.calc = Calculator((potential, params))
print(repr(atoms.get_potential_energy()), jax.config.jax_enable_x64, jax.numpy.zeros(1).dtype)
"""


def test_float64_where_x64_is_off(lennard_jones):
    """The numbers are those of float64, and jax stays as it was."""
    command = [sys.executable, "-W", "error", "-c", SINGLE_PRECISION_SCRIPT]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    atoms = ase.Atoms("Ar3", positions=[(0, 0, 0), (3.7, 0.1, 0), (0.2, 3.9, 0.3)], calculator=lennard_jones)
    assert float(out[0]) == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
    assert out[1:] == ["False", "float32"]


def test_a_file_is_a_model_and_a_wrong_head_lists_those_that_exist():
    water = Path(__file__).parent / "fixtures" / "multitask" / "single_water.dp"
    atoms = ase.build.molecule("H2O")
    atoms.calc = Calculator(water)
    potential, params = lamjax.load(water)
    system = lamjax.from_ase(atoms)
    run = jax.jit(lamjax.predict, static_argnums=0)
    expected = run(potential, params, system, lamjax.allocate(potential, system))
    np.testing.assert_allclose(atoms.get_potential_energy(), expected.energy, rtol=1e-13)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)
    with pytest.raises(ValueError, match="available: Default"):
        Calculator(water, head="Oxide")


def parametrised() -> Calculator:
    """The energies of the atoms depend on all that a System holds."""
    pairs = classical.lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=8.0)

    def atomic_energies(params, system, neighbors):
        result = pairs.atomic_energies(params, system, neighbors) * (1 + 0.1 * system.numbers)
        for given in (system.fparam, system.aparam):
            result = result if given is None else result * (1 + jnp.sum(given))
        return result

    return Calculator((pairs._replace(atomic_energies=atomic_energies), pairs.init()))


CHANGES = {
    "fparam": lambda atoms: atoms.info.update(fparam=[0.3, 0.2]),
    "fparam in place": lambda atoms: atoms.info["fparam"].__setitem__(0, 7.0),
    "no fparam": lambda atoms: atoms.info.pop("fparam"),
    "aparam": lambda atoms: atoms.arrays["aparam"].__setitem__((1, 0), 0.5),
    "no aparam": lambda atoms: atoms.arrays.pop("aparam"),
    "pbc": lambda atoms: atoms.set_pbc([True, True, False]),
    "cell": lambda atoms: atoms.set_cell(1.01 * atoms.cell.array),
    "numbers": lambda atoms: atoms.numbers.__setitem__(0, 10),
    "positions": lambda atoms: atoms.positions.__setitem__((0, 0), 0.1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_after_a_call_is_noticed(name):
    atoms, calculator = argon(), parametrised()
    atoms.info["fparam"], atoms.arrays["aparam"] = np.array([0.1, 0.2]), np.array([[0.1], [0.2]])
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    assert atoms.get_potential_energy() == before and not calculator.calculation_required(atoms, ["energy"])
    CHANGES[name](atoms)
    fresh = atoms.copy()
    fresh.calc = parametrised()
    assert calculator.calculation_required(atoms, ["energy"])
    assert atoms.get_potential_energy() == fresh.get_potential_energy() != before
    np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())


def test_a_wrong_parameter_is_told_and_can_be_mended(lennard_jones):
    atoms = argon()
    atoms.calc = lennard_jones
    expected = atoms.get_potential_energy()
    atoms.info["fparam"] = [np.nan]
    for _ in range(2):
        with pytest.raises(ValueError, match="fparam holds a value that is not finite"):
            atoms.get_potential_energy()
    del atoms.info["fparam"]
    assert atoms.get_potential_energy() == expected


def test_other_parameters_are_used_at_once(lennard_jones):
    atoms = argon()
    atoms.calc = lennard_jones
    before = atoms.get_potential_energy()
    lennard_jones.params = {**lennard_jones.params, "epsilon": np.float32(2 * lennard_jones.params["epsilon"])}
    assert atoms.get_potential_energy() == pytest.approx(2 * before, rel=1e-6)
    with pytest.raises(AttributeError):
        lennard_jones.potential = classical.morse()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"default_dtype": "float32"}, "no option default_dtype: use dtype='float32'"),
        ({"dtyp": "float32"}, "no option dtyp: use dtype='float32'"),
        ({"precision": "float32"}, "use dtype='float32'"),
        ({"device": "cuda"}, "no option device: JAX computes on .*JAX_PLATFORMS"),
        ({"device": "cuda", "heads": "water"}, "device: .*no option heads: use head='water'"),
        ({"model_path": "x.lamjax"}, "use model='x.lamjax'"),
        ({"xc": "PBE"}, "no option xc; there are model, head, dtype, elements, label, atoms, directory"),
        ({"restart": "old"}, "keeps no files"),
    ],
)
def test_options_that_there_are_not_are_named(options, message):
    potential = classical.lennard_jones()
    with pytest.raises(TypeError, match=message):
        Calculator((potential, potential.init()), **options)
    calculator = Calculator((potential, potential.init()), label="fine", directory=".")
    with pytest.raises(TypeError, match="cannot be set later" if "restart" in options else message):
        calculator.set(**options)
    with pytest.raises(TypeError, match="dtype cannot be set later. Make another lamjax.Calculator"):
        calculator.set(dtype="float32")


def test_a_precision_that_there_is_not_is_named():
    potential = classical.lennard_jones()
    for dtype in ("float16", "int32", "double precision"):
        with pytest.raises(ValueError, match=f"dtype is '{dtype}'; .* float32 or float64"):
            Calculator((potential, potential.init()), dtype=dtype)
