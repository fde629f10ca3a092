"""Relaxing cells: forces on the strain are derivatives, minima are those of ASE's FrechetCellFilter."""

from importlib import resources
from pathlib import Path

import ase
import ase.build
import ase.filters
import ase.io
import ase.optimize
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, numerics, units
from lamjax.relaxation import CellConfig, RelaxConfig, coordinates, relax_structures, surface
from lamjax.system import volume

STARTS = Path(__file__).parent.parent / "fixtures" / "crystals" / "starts.extxyz"
DEMO = str(resources.files("lamjax") / "assets" / "demo" / "base.lamjax")


def crystal(pbc=True) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=3.55, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.04 * np.random.default_rng(0).normal(size=(3, 3))), True)
    atoms.pbc = pbc
    return atoms


def test_expm_is_scipys(rng):
    import scipy.linalg

    for size in (0.0, 1e-3, 0.3, 2.0):
        x = size * rng.normal(size=(3, 3))
        np.testing.assert_allclose(numerics.expm(jnp.asarray(x)), scipy.linalg.expm(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (CellConfig(pressure=0.03), True),
        (CellConfig(components=(True, False, True, False, True, False)), True),
        (CellConfig(keep="shape"), True),
        (CellConfig(keep="volume"), True),
        (CellConfig(), (True, True, False)),
        (CellConfig(), (False, True, False)),
    ],
    ids=["pressure", "components", "shape", "volume", "slab", "wire"],
)
def test_forces_on_coordinates_are_derivatives(cell, pbc, rng):
    """Far from the reference too, where strains do not commute."""
    potential = models.morse()
    params = models.params_of(potential)
    system = lamjax.from_ase(crystal(pbc))
    lists = lamjax.allocate(potential, system)
    there = surface.over(potential, jax.tree.map(lambda x: x[None], system), None, cell)
    start = jax.vmap(coordinates.start)(there.reference)
    away = there.project(jnp.asarray(0.2 * rng.normal(size=start.shape)))
    z, near = start + away, jax.tree.map(lambda x: x[None], lists)
    force = there.evaluate(params, z, near).force

    def objective(z):
        here = coordinates.place(z[0], system)
        return potential.energy(params, here, lists) + cell.pressure * volume(here)

    np.testing.assert_allclose(force, -there.project(jax.grad(objective)(z)), rtol=0, atol=1e-12)
    along = there.project(jnp.asarray(rng.normal(size=z.shape)))
    h = 1e-5
    numeric = (objective(z + h * along) - objective(z - h * along)) / (2 * h)
    assert float(jnp.vdot(force, along)) == pytest.approx(-float(numeric), rel=1e-7)


def test_strain_stays_within_what_may_change(rng):
    """Symmetric always; in a slab nothing happens along the normal; a molecule is not strained."""
    for pbc, normal in (((True, True, False), 2), ((False, True, True), 0)):
        atoms = crystal(pbc)
        atoms.cell[normal] = 0
        reference = lamjax.from_ase(atoms)
        every = coordinates.free(reference, None, CellConfig())
        strain = coordinates.project(jnp.asarray(rng.normal(size=(7, 3))), reference, every, CellConfig())[-3:]
        np.testing.assert_allclose(strain, strain.T, atol=1e-14)
        direction = np.cross(*atoms.cell.array[[k for k in range(3) if k != normal]])
        np.testing.assert_allclose(strain @ (direction / np.linalg.norm(direction)), 0, atol=1e-12)
    molecule = lamjax.from_ase(crystal(False))
    every = coordinates.free(molecule, None, CellConfig())
    assert not coordinates.project(jnp.ones((7, 3)), molecule, every, CellConfig())[-3:].any()


@pytest.mark.parametrize("keep", ["nothing", "shape", "volume"])
def test_minimum_under_pressure_is_that_of_ase(keep):
    """Enthalpy, volume and stress; the pressure in GPa is that of ASE's scalar_pressure."""
    potential = models.morse()
    params = models.params_of(potential)
    pressure = 2.0 * units.GPA
    config = RelaxConfig(fmax=1e-4, max_steps=3000, cell=CellConfig(pressure, keep=keep))
    atoms = crystal()
    (relaxed,) = relax_structures(potential, params, [lamjax.from_ase(atoms)], config)
    assert relaxed.converged
    atoms.calc = lamjax.Calculator((potential, params))
    options = {"shape": {"hydrostatic_strain": True}, "volume": {"constant_volume": True}}.get(keep, {})
    filtered = ase.filters.FrechetCellFilter(atoms, scalar_pressure=pressure, **options)
    assert ase.optimize.FIRE(filtered, logfile=None).run(fmax=1e-4, steps=3000)
    found_volume = abs(np.linalg.det(relaxed.system.cell))
    enthalpy = atoms.get_potential_energy() + pressure * atoms.get_volume()
    assert relaxed.energy + pressure * found_volume == pytest.approx(enthalpy, abs=1e-6)
    assert found_volume == pytest.approx(atoms.get_volume(), rel=1e-5)
    if keep == "nothing":
        stress = -relaxed.virial / atoms.get_volume()
        np.testing.assert_allclose(stress, -pressure * np.eye(3), atol=1e-4)


def test_positions_of_fixed_atoms_follow_the_cell():
    potential = models.morse()
    atoms = crystal()
    fixed = np.zeros((4, 3), bool)
    fixed[:2] = True
    system = lamjax.from_ase(atoms)
    config = RelaxConfig(fmax=1e-3, cell=CellConfig())
    (relaxed,) = relax_structures(potential, models.params_of(potential), [system], config, fixed=[fixed])
    assert relaxed.converged
    before, after = (np.asarray(s.positions) @ np.linalg.inv(s.cell) for s in (system, relaxed.system))
    np.testing.assert_allclose(before[:2], after[:2], atol=1e-10)
    assert np.abs(before[2:] - after[2:]).max() > 1e-3


def test_a_cell_that_outgrows_its_images_overflows_and_the_host_helps_itself():
    """A soft crystal that shrinks by a third."""
    potential = models.morse()
    atoms = ase.build.bulk("Cu", "fcc", a=4.6)
    system = lamjax.from_ase(atoms)
    config = RelaxConfig(fmax=1e-3, max_steps=2000, cell=CellConfig())
    params = models.params_of(potential)
    lists = jax.tree.map(jnp.asarray, neighbors.allocate(system, potential.shells))
    narrow = jax.jit(lambda s, n: lamjax.relax(potential, params, s, n, config))(system, lists)
    assert narrow.overflow and not narrow.converged
    (relaxed,) = relax_structures(potential, params, [system], config)
    assert relaxed.converged and not relaxed.overflow
    assert abs(np.linalg.det(relaxed.system.cell)) < 0.7 * atoms.get_volume()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:An atom has .* of which the model keeps the nearest")  # of one, on BFGS's way
def test_minima_of_20_real_crystals_are_those_of_ase():
    potential, params = lamjax.load(DEMO, dtype=np.float64)
    starts = ase.io.read(STARTS, ":")
    assert len(starts) == 20
    config = RelaxConfig(fmax=1e-4, max_steps=3000, cell=CellConfig())
    result = relax_structures(potential, params, [lamjax.from_ase(a) for a in starts], config)
    calculator = lamjax.Calculator((potential, params))
    for atoms, relaxed in zip(starts, result, strict=True):
        atoms.calc = calculator
        assert ase.optimize.BFGS(ase.filters.FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=1000)
        assert relaxed.converged
        assert relaxed.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert abs(np.linalg.det(relaxed.system.cell)) == pytest.approx(atoms.get_volume(), rel=1e-4)
