"""Phonons against phonopy's stored numbers, against ASE, and what they must obey."""

import json
from pathlib import Path

import ase.build
import ase.phonons
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import numerics, properties
from lamjax.properties import survey, vibrations

STORED = json.loads((Path(__file__).parents[1] / "fixtures" / "phonons" / "silicon.json").read_text())


@pytest.fixture(scope="module")
def silicon():
    potential = crystals.potential_of("stillinger_weber")
    system = lamjax.from_ase(ase.build.bulk("Si", "diamond", a=STORED["lattice"]))
    lists = lamjax.allocate(potential, system)
    cells = properties.supercell(potential, system, (3, 3, 3))
    run = jax.jit(lambda params: properties.force_constants(potential, params, system, lists, cells))
    return potential, system, lists, cells, run(potential.init())


def test_frequencies_are_those_of_phonopy(silicon):
    """Displacements of 0.002 Å there, none here; wave vectors that fit into the supercell and others."""
    _, system, _, cells, harmonic = silicon
    values = vibrations.frequencies(harmonic.constants, system, cells, STORED["qpoints"])
    np.testing.assert_allclose(values[1:], STORED["frequencies"][1:], rtol=0, atol=2e-4)
    assert np.abs(values[0, :3]).max() < 1e-5 and np.abs(values[0, 3:] - 17.83).max() < 0.005  # of the literature
    assert harmonic.sum_rule < 1e-10 and bool(harmonic.converged)
    fits = properties.commensurate(STORED["qpoints"], cells)
    assert fits.tolist() == [True, False, False, True, False, False]


def test_thermodynamics_is_that_of_phonopy(silicon):
    _, system, _, cells, harmonic = silicon
    qpoints = properties.mesh(STORED["mesh"])
    values = vibrations.frequencies(harmonic.constants, system, cells, qpoints)
    waves = vibrations.Phonons(qpoints, values, harmonic, values.min(), jnp.array(True), jnp.array(True))
    heat = properties.thermodynamics(waves, jnp.array(STORED["temperatures"]))
    per_mole = 96.4853321  # kJ/mol of one eV
    np.testing.assert_allclose(heat.zero_point * per_mole, STORED["zero_point"], rtol=2e-5)
    np.testing.assert_allclose(heat.free_energy * per_mole, STORED["free_energy"], rtol=1e-4)
    np.testing.assert_allclose(heat.entropy * per_mole * 1e3, STORED["entropy"], rtol=1e-4)
    np.testing.assert_allclose(heat.heat_capacity * per_mole * 1e3, STORED["heat_capacity"], rtol=1e-4)
    cold = properties.thermodynamics(waves, jnp.array([0.0, 1e5]))
    assert cold.heat_capacity[0] == 0 and cold.free_energy[0] == pytest.approx(float(cold.zero_point))
    assert cold.heat_capacity[1] == pytest.approx(6 * ase.units.kB, rel=1e-5)  # Dulong and Petit
    grid = np.linspace(-1, 20, 2000)
    density = properties.density_of_states(waves, jnp.asarray(grid))
    assert np.trapezoid(density, grid) == pytest.approx(6, rel=1e-6)


def test_force_constants_are_symmetric_and_transposed_pairs_agree(silicon):
    _, system, _, cells, harmonic = silicon
    constants = np.asarray(harmonic.constants)
    assert np.abs(constants.sum(axis=1)).max() < 1e-12
    for q in ((0.2, 0.3, -0.1), (0.5, 0.5, 0.5)):
        turn = np.einsum("ijkx,x->ijk", cells.images, q)
        phase = (cells.weights * np.exp(2j * np.pi * turn)).sum(-1)
        blocks = (constants * phase[..., None, None]).reshape(2, 2, 27, 3, 3).sum(2).swapaxes(1, 2).reshape(6, 6)
        assert np.abs(blocks - blocks.conj().T).max() < 1e-10


def test_shared_shapes_change_nothing(silicon):
    """What the survey computes in padded arrays, block by block."""
    potential, system, _, cells, harmonic = silicon
    constants, residual = survey.force_constants(potential, potential.init(), system, cells)
    np.testing.assert_allclose(constants, harmonic.constants, rtol=0, atol=1e-10)
    assert residual < 1e-10


def test_a_chain_too_small_for_the_cutoff_folds_its_images():
    """One atom a cell, neighbours farther than the cell: all images are in Φ, and waves that fit are exact.

    Along x an fcc crystal with pair potential: ω² from the sum over all neighbours.
    """
    potential = crystals.potential_of("lennard_jones")
    params = potential.init()
    atoms = crystals.fcc(1.85)
    system, lists = crystals.room(potential, atoms)
    q = np.array([0.5, 0.5, 0.0])

    def at(repeats):
        cells = properties.supercell(potential, system, repeats)
        run = jax.jit(lambda p: properties.force_constants(potential, p, system, lists, cells).constants)
        return np.asarray(vibrations.frequencies(run(params), system, cells, q[None]))[0]

    flat = at((2, 2, 1))
    np.testing.assert_allclose(flat, at((2, 2, 2)), atol=1e-8)
    # independent: Σ_R (1 - cos q·R) of the pair's second derivatives
    large = atoms.repeat((13, 13, 13))
    vectors = large.positions - large.positions[len(large) // 2]
    vectors = vectors[(np.linalg.norm(vectors, axis=1) < 4.0) & (np.linalg.norm(vectors, axis=1) > 1e-6)]

    def pair(d):
        r = jnp.sqrt(jnp.sum(d * d))
        x = (params["sigma"] / r) ** 6
        return 4 * params["epsilon"] * (x * x - x) * numerics.switch(r, 3.2, 4.0)

    blocks = jax.vmap(jax.hessian(pair))(jnp.asarray(vectors))
    wave = 2 * np.pi * np.linalg.inv(atoms.cell.array) @ q
    matrix = np.einsum("n,nab->ab", 1 - np.cos(vectors @ wave), np.asarray(blocks)) / atoms.get_masses()[0]
    expected = vibrations.THZ * np.sqrt(np.linalg.eigvalsh(matrix))
    np.testing.assert_allclose(flat, expected, rtol=1e-8)


def test_an_unstable_crystal_is_flagged():
    potential = crystals.potential_of("lennard_jones")
    params = potential.init()
    system, lists = crystals.room(potential, ase.build.bulk("Cu", "sc", a=1.283))
    cells = properties.supercell(potential, system, (2, 2, 1))
    run = jax.jit(lambda p: properties.phonons(potential, p, system, lists, cells, properties.mesh((2, 2, 2))))
    result = run(params)
    assert not result.stable and result.least < -0.1
    heat = properties.thermodynamics(result, jnp.array([300.0]))
    assert heat.share_left_out > 0.1 and np.isfinite(heat.heat_capacity).all()


def test_gruneisen_parameters_are_those_of_two_volumes(silicon):
    """-d ln ω/d ln V, by differences of relaxed crystals at two volumes; and thermal expansion from their sum."""
    potential, system, lists, cells, _ = silicon
    small = properties.supercell(potential, system, (2, 1, 1))
    qpoints = np.array([(0.5, 0.0, 0.0), (0.25, 0.13, 0.4)])
    params = potential.init()
    run = jax.jit(lambda s: properties.gruneisen(potential, params, s, lists, small, qpoints))
    result = run(system)
    h = 1e-4

    def at(change):
        scale = (1 + change) ** (1 / 3)
        moved = system._replace(positions=scale * system.positions, cell=scale * system.cell)
        return np.asarray(run(moved).frequencies)

    numeric = -(at(h) - at(-h)) / (2 * h) / np.asarray(result.frequencies)
    np.testing.assert_allclose(result.parameters, numeric, rtol=0, atol=1e-5)
    assert np.abs(numeric).max() > 0.5
    expansion = properties.thermal_expansion(result, 40.0, 100.0, jnp.array([0.0, 300.0]))
    heat = properties.thermodynamics(
        vibrations.Phonons(qpoints, result.frequencies, None, 0, None, None), jnp.array([300.0])
    )
    mean = float(expansion[1]) * 40.0 * 100.0 * lamjax.units.GPA / float(heat.heat_capacity[0])
    assert expansion[0] == 0 and numeric.min() < mean < numeric.max()


def test_bad_requests_are_refused():
    potential = crystals.potential_of("lennard_jones")
    system, _ = crystals.room(potential, crystals.fcc())
    with pytest.raises(ValueError, match="three whole numbers"):
        properties.supercell(potential, system, (2, 0, 1))
    with pytest.raises(ValueError, match="three whole numbers"):
        properties.mesh((2.5, 1, 1))
    molecule, _ = crystals.room(potential, ase.Atoms("Cu2", positions=[(0, 0, 0), (1.3, 0, 0)]))
    with pytest.raises(ValueError, match="a molecule"):
        properties.supercell(potential, molecule)
    assert properties.supercell(potential, system, length=3.0).repeats.tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="more than 20000"):
        properties.supercell(potential, system, length=500.0)


def test_frequencies_do_not_depend_on_how_skewed_the_cell_is_that_describes_the_crystal():
    """Of a skewed cell the nearest copy of an atom lies many lattice vectors away."""
    potential = crystals.potential_of("lennard_jones")
    system, _ = crystals.room(potential, crystals.fcc())
    change = np.array([[1, 0, 0], [3, 1, 0], [4, -3, 1]])
    skewed = system._replace(cell=change @ system.cell)
    q = np.array([[0.11, 0.23, -0.17], [0.3, 0.1, 0.05]])
    values = []
    for crystal, wave in ((system, q), (skewed, q @ change.T)):
        cells = properties.supercell(potential, crystal, (3, 3, 3))
        constants, _ = survey.force_constants(potential, potential.init(), crystal, cells)
        values.append(vibrations.frequencies(constants, crystal, cells, wave))
    np.testing.assert_allclose(values[1], values[0], rtol=0, atol=1e-6)


def test_the_path_goes_through_the_named_points():
    system = lamjax.from_ase(ase.build.bulk("Si", "diamond", a=5.43))
    path = properties.path(system, 60)
    names = [name for _, name in path.ticks]
    assert names[0] == "G" and "X" in names and "L" in names
    at_x = path.qpoints[np.argmin(np.abs(path.distances - path.ticks[names.index("X")][0]))]
    assert sorted(np.abs(at_x)) == pytest.approx([0, 0.5, 0.5])
    step = np.linalg.norm(np.diff(path.qpoints @ np.linalg.inv(np.asarray(system.cell)).T, axis=0), axis=1)
    way = np.diff(path.distances)
    np.testing.assert_allclose(step[way > 1e-9], way[way > 1e-9], rtol=1e-9)
