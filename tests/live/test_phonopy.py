"""phonopy and seekpath themselves (`pip install -e ".[test,properties]" && pytest -m phonopy`)."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import properties
from lamjax.properties import vibrations

pytestmark = pytest.mark.phonopy


@pytest.fixture(scope="module")
def silicon():
    potential = crystals.potential_of("stillinger_weber")
    system = lamjax.from_ase(ase.build.bulk("Si", "diamond", a=5.430949778477875))
    lists = lamjax.allocate(potential, system)
    cells = properties.supercell(potential, system, (2, 2, 2))
    run = jax.jit(lambda params: properties.force_constants(potential, params, system, lists, cells).constants)
    return potential, system, cells, run(potential.init())


def test_phonopy_finds_the_same_frequencies_in_our_files(silicon, tmp_path):
    import phonopy

    _, system, cells, constants = silicon
    files = properties.write_phonopy(tmp_path, system, cells, constants)
    assert [file.name for file in files] == ["FORCE_CONSTANTS", "phonopy_params.yaml"]
    read = phonopy.load(files[1], symmetrize_fc=False)
    qpoints = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 3))
    read.run_qpoints(qpoints)
    ours = vibrations.frequencies(constants, system, cells, qpoints)
    np.testing.assert_allclose(read.qpoints.frequencies, ours, rtol=1e-6, atol=1e-5)
    unit = properties.to_phonopy(system, cells, constants).unitcell
    compact = {"is_compact_fc": True, "symmetrize_fc": False, "primitive_matrix": "P"}
    text = phonopy.load(unitcell=unit, supercell_matrix=[2, 2, 2], force_constants_filename=files[0], **compact)
    text.run_qpoints(qpoints)
    np.testing.assert_allclose(text.qpoints.frequencies, ours, rtol=1e-6, atol=1e-5)


def test_displacements_give_the_same_force_constants(silicon):
    potential, system, cells, constants = silicon
    made = properties.to_phonopy(system, cells, constants)
    exact = np.array(made.force_constants)
    made.generate_displacements(distance=0.002, is_plusminus=True)
    calculator, forces = lamjax.Calculator((potential, potential.init())), []
    for cell in made.supercells_with_displacements:
        atoms = ase.Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True, calculator=calculator)
        forces.append(atoms.get_forces())
    made.forces = forces
    made.produce_force_constants(calculate_full_force_constants=False)
    np.testing.assert_allclose(exact, made.force_constants, rtol=0, atol=1e-3 * np.abs(exact).max())


def test_a_crystal_of_three_kinds_keeps_its_atoms_apart():
    potential = crystals.potential_of("lennard_jones")
    atoms = ase.Atoms(
        "CuAgAu",
        scaled_positions=[(0.05, 0, 0), (0.4, 0.5, 0.3), (0.7, 0.2, 0.8)],
        cell=[[2.1, 0, 0], [0.4, 2.3, 0], [-0.2, 0.5, 2.0]],
        pbc=True,
    )
    system = lamjax.from_ase(atoms)
    cells = properties.supercell(potential, system, (2, 1, 2))
    constants, _ = jax.jit(lambda p: vibrations.constants_of(potential, p, system, cells))(potential.init())
    made = properties.to_phonopy(system, cells, constants)
    qpoints = np.array([(0.1, 0.2, 0.3), (0.5, 0, 0.5)])
    made.run_qpoints(qpoints)
    ours = vibrations.frequencies(constants, system, cells, qpoints)
    np.testing.assert_allclose(made.qpoints.frequencies, ours, rtol=1e-6, atol=1e-5)


def test_the_path_of_seekpath_is_in_the_cell_as_it_is(silicon):
    _, system, *_ = silicon
    path = properties.path(system, 80, by="seekpath")
    names = [name for _, name in path.ticks]
    assert names[0] == "G" and "X" in names and "L" in names
    assert np.all(np.diff(path.distances) >= 0) and len(path.qpoints) == len(path.distances)
    x = path.qpoints[np.argmin(np.abs(path.distances - path.ticks[names.index("X")][0]))]
    assert sorted(np.abs(x)) == pytest.approx([0, 0.5, 0.5]) and jnp.isfinite(x).all()
