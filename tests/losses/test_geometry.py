"""The distance of two structures is exact in every cell, blind to what is no difference, and differentiable."""

import functools

import ase.build
import ase.data
import ase.geometry
import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lamjax import pytree
from lamjax.losses.geometry import _aside, aligned_displacement, structure_error
from lamjax.system import System, host_system, pad

CUBE = ((9, 0, 0), (0, 9, 0), (0, 0, 9))
SKEWED = ((9, 0, 0), (4, 8, 0), (-3, 2, 7))
PERIODIC = [(True, True, True), (True, False, True), (False, True, False), (False, False, False)]
FIELDS = ("dq", "rmsd", "largest", "strain", "volume")
WIDTH = 8  # all structures are padded to this many atoms, so that few programs are compiled
SIX = [1, 6, 8, 14, 14, 79]
PINNED = np.arange(18).reshape(6, 3) == 4  # one direction of one atom of six is fixed


def error(system, target, fixed=None):
    return jax.jit(structure_error)(*padded(system, target, fixed))


def displacement(system, target, fixed=None):
    """The vectors of the real atoms; those of padding must be 0."""
    d = np.array(jax.jit(aligned_displacement)(*padded(system, target, fixed)))
    np.testing.assert_array_equal(d[system.n_atoms :], 0)
    return d[: system.n_atoms]


def padded(system, target, fixed):
    fixed = np.zeros((system.n_atoms, 3), bool) if fixed is None else fixed
    return pad(system, WIDTH), pad(target, WIDTH), np.pad(fixed, ((0, WIDTH - system.n_atoms), (0, 0)))


def system_of(positions, cell=CUBE, pbc=(True, True, True), numbers=None):
    positions = np.asarray(positions, float)
    numbers = np.full(len(positions), 14) if numbers is None else np.asarray(numbers)
    return System(positions, numbers.astype(np.int32), np.asarray(cell, float), np.asarray(pbc))


def at(system, positions):
    return system._replace(positions=np.asarray(positions, float))


def turned(system, rotation):
    """The structure and its cell rotated."""
    matrix = rotation.as_matrix().T
    return system._replace(positions=system.positions @ matrix, cell=system.cell @ matrix)


def deformed(system, gradient):
    """Positions and cell after x -> x F."""
    return system._replace(positions=system.positions @ gradient, cell=system.cell @ gradient)


def molecule(rng):
    return system_of(2 * rng.normal(size=(6, 3)), np.zeros((3, 3)), (False,) * 3, SIX)


def centred(x, system):
    """Vectors of the atoms less their mass-weighted mean."""
    return x - np.average(x, axis=0, weights=ase.data.atomic_masses[system.numbers])


def water_dimer():
    atoms = ase.build.molecule("H2O")
    other = ase.build.molecule("H2O")
    other.rotate(70, (1, 2, 3))
    other.translate((0.4, -0.3, 2.9))
    return host_system(atoms + other)


def test_distance_is_the_formula():
    system = system_of(np.zeros((3, 3)), numbers=[1, 8, 14])
    target = np.array([[0.1, 0, 0], [0, -0.2, 0.05], [0.03, 0.02, 0]])
    mass, d = ase.data.atomic_masses[system.numbers], centred(target, system)
    computed = error(system, at(system, target))
    assert computed.dq == pytest.approx(np.sqrt((mass * (d**2).sum(axis=1)).sum()), rel=1e-12)
    assert computed.rmsd == pytest.approx(np.sqrt((d**2).sum() / 3), rel=1e-12)
    assert computed.largest == pytest.approx(np.linalg.norm(d, axis=1).max(), rel=1e-12)
    assert computed.strain == 0 and computed.volume == 0
    np.testing.assert_allclose(displacement(system, at(system, target)), d, atol=1e-14)


def sheared(pbc, rng):
    """A compact cell, and another one of the same lattice that is sheared by lattice vectors."""
    compact = 0.5 * rng.normal(size=(3, 3)) + np.diag(rng.uniform(3, 6, size=3))
    return compact, (np.round(3 * rng.normal(size=(3, 3))) * np.triu(np.outer(pbc, pbc), 1) + np.eye(3)) @ compact


@pytest.mark.parametrize("pbc", PERIODIC)
def test_images_are_the_nearest_in_skewed_cells(pbc, rng):
    """Against all images within 8 cells of a compact cell; the system has a sheared cell of the same lattice."""
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9) if p else [0] for p in pbc], indexing="ij"), -1).reshape(-1, 3)
    for _ in range(15):
        compact, cell = sheared(pbc, rng)
        positions, target = rng.uniform(-5, 5, size=(2, WIDTH, 3))
        system = system_of(positions, cell, pbc)
        far = (target - positions)[:, None] + (grid @ compact)[None]
        shortest = np.linalg.norm(far, axis=-1).min(axis=1)
        computed = error(system, at(system, target), np.ones((WIDTH, 3), bool))  # no translation is removed
        assert computed.largest == pytest.approx(shortest.max(), abs=1e-9)
        assert computed.rmsd == pytest.approx(np.sqrt((shortest**2).mean()), abs=1e-9)


@pytest.mark.parametrize("pbc", PERIODIC[:3])
def test_displacements_in_one_cell_are_ases(pbc, rng):
    for _ in range(10):
        _, cell = sheared(pbc, rng)
        system = system_of(rng.uniform(-5, 5, size=(6, 3)), cell, pbc, SIX)
        moved = at(system, system.positions + 0.2 * rng.normal(size=(6, 3)))
        # ASE finds the shortest only if what the cell holds where it is not periodic is orthogonal
        d, _ = ase.geometry.find_mic(moved.positions - system.positions, np.where(np.array(pbc)[:, None], cell, 0), pbc)
        np.testing.assert_allclose(displacement(system, moved, PINNED), d, atol=1e-12)
        np.testing.assert_allclose(displacement(system, moved), centred(d, system), atol=1e-12)


def test_displacements_from_another_cell_are_ases(rng):
    for _ in range(10):
        system = system_of(rng.uniform(0, 9, size=(6, 3)), SKEWED + rng.normal(size=(3, 3)), numbers=SIX)
        cell = SKEWED + rng.normal(size=(3, 3))
        change = 0.03 * rng.normal(size=(6, 3)) + rng.integers(-2, 3, size=(6, 3))  # of fractional coordinates
        target = at(system, (system.positions @ np.linalg.inv(system.cell) + change) @ cell)._replace(cell=cell)
        d, _ = ase.geometry.find_mic(change @ cell, cell)
        np.testing.assert_allclose(displacement(system, target, PINNED), d, atol=1e-12)
        np.testing.assert_allclose(displacement(system, target), centred(d, system), atol=1e-12)


def test_any_translation_of_scattered_atoms_is_found(rng):
    """Displacements of a third of the cell beside a translation: only from the mean on the circle is it found."""
    cell = np.diag([6.0, 7.0, 8.0])
    system = system_of(rng.uniform(0, 6, size=(6, 3)), cell, numbers=SIX)
    mass = ase.data.atomic_masses[SIX][:, None]
    for _ in range(40):
        d = rng.uniform(-0.2, 0.2, size=(6, 3)) @ cell
        d -= (mass * d).sum(axis=0) / mass.sum()
        moved = system.positions + d + rng.uniform(0, 1, size=3) @ cell
        assert error(system, at(system, moved)).dq <= np.sqrt((mass * d**2).sum()) * (1 + 1e-9)


def test_a_wire_is_completed_from_a_direction_that_neither_axis_has(rng):
    for _ in range(50):
        target = np.zeros((3, 3))
        target[2] = rng.normal(size=3)
        system = target.copy()
        normal = np.cross(target[2], np.eye(3)[np.argmin(np.abs(target[2]))])
        system[2] = normal + 0.3 * rng.normal(size=3)
        wires = [system_of(np.zeros((1, 3)), cell, (False, False, True)) for cell in (system, target)]
        aside = np.asarray(_aside(*wires))
        along = [abs(aside @ wire.cell[2]) / np.linalg.norm(wire.cell[2]) for wire in wires]
        assert np.linalg.norm(aside) == pytest.approx(1) and along[1] < 1e-12 and along[0] <= 0.8


def test_translation_lattice_vectors_and_padding_do_not_count(rng):
    system = system_of(rng.uniform(0, 9, size=(5, 3)), SKEWED, numbers=[1, 6, 8, 14, 14])
    target = at(system, system.positions + 0.1 * rng.normal(size=(5, 3)))
    plain = error(system, target)
    half = np.array(SKEWED)[0] / 2  # atoms on both sides of the nearest image
    for shift in [np.array([3.3, -1.7, 5.0]), half, *10 * rng.normal(size=(10, 3))]:
        moved = target.positions + rng.integers(-3, 4, size=(5, 3)) @ system.cell + shift
        np.testing.assert_allclose(error(system, at(system, moved)), plain, rtol=1e-10)
    wide = at(pad(target, 7), np.concatenate([moved, np.full((2, 3), 7.0)]))
    np.testing.assert_allclose(error(pad(system, 7), wide), plain, rtol=1e-10)


def test_rotation_of_a_crystal_or_slab_with_its_cell_does_not_count(rng):
    for pbc in [(True, True, True), (True, True, False), (False, True, True)]:
        system = system_of(rng.uniform(0, 9, size=(5, 3)), SKEWED, pbc, [1, 6, 8, 14, 14])
        target = deformed(system, np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
        target = at(target, target.positions + 0.2 * rng.normal(size=(5, 3)))
        plain = error(system, target)
        assert plain.dq > 0.1 and plain.strain > 0.01
        for rotation in Rotation.random(5, rng=rng):
            np.testing.assert_allclose(error(turned(system, rotation), target), plain, rtol=1e-9)
            np.testing.assert_allclose(error(system, turned(target, rotation)), plain, rtol=1e-9)


def test_molecule_is_aligned_as_scipy_does(rng):
    for _ in range(20):
        system, target = molecule(rng), molecule(rng)
        x, y = (centred(s.positions, system) for s in (system, target))
        rotation, distance = Rotation.align_vectors(y, x, weights=ase.data.atomic_masses[SIX])
        assert error(system, target).dq == pytest.approx(distance, rel=1e-12)
        np.testing.assert_allclose(displacement(system, target), y - rotation.apply(x), atol=1e-12)


def test_rotated_water_dimer_is_the_same(dtype, rng):
    system = pad(water_dimer(), WIDTH)
    for rotation in Rotation.random(10, rng=rng):
        moved = at(system, rotation.apply(system.positions) + rng.normal(size=3))
        value, jacobian = derivatives(system, moved, dtype)
        assert value.dq < (1e-6 if dtype == np.float64 else 1e-5)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jacobian))


def test_mirror_image_of_a_molecule_is_another_one(rng):
    system = molecule(rng)
    assert error(system, at(system, system.positions * [1, 1, -1])).dq > 1
    flat = at(system, system.positions * [1, 1, 0])  # here half a turn does what the mirror does
    assert error(flat, at(flat, flat.positions * [-1, 1, 1])).dq < 1e-12


def test_fixed_atom_pins_the_frame(rng):
    system = molecule(rng)
    moved = at(system, Rotation.random(rng=rng).apply(system.positions) + 1.0)
    assert error(system, moved).dq < 1e-12
    np.testing.assert_allclose(displacement(system, moved, PINNED), moved.positions - system.positions, atol=1e-14)
    crystal = system_of(system.positions, SKEWED)
    computed = displacement(crystal, at(crystal, crystal.positions + 0.5), PINNED)
    np.testing.assert_allclose(computed, 0.5, atol=1e-14)
    padding = np.arange(7)[:, None] == np.full(3, 6)
    assert error(pad(system, 7), pad(moved, 7), padding).dq < 1e-12


def test_strain_and_volume_of_known_deformations(rng):
    target = system_of(rng.uniform(0, 9, size=(3, 3)), SKEWED)
    computed = error(deformed(target, 1.1 * np.eye(3)), target)
    assert computed.strain == pytest.approx(np.sqrt(3) * (1.1**2 - 1) / 2, rel=1e-12)
    assert computed.volume == pytest.approx(1.1**3 - 1, rel=1e-12)
    shear = np.eye(3)
    shear[0, 1] = 0.2
    computed = error(deformed(target, shear), target)
    assert computed.strain == pytest.approx(np.sqrt(2 * 0.1**2 + 0.02**2), rel=1e-12)
    assert computed.volume == pytest.approx(0, abs=1e-14)
    gradient = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    expected = np.linalg.norm(gradient @ gradient.T - np.eye(3)) / 2
    for rotation in Rotation.random(5, rng=rng):
        computed = error(turned(target, rotation), target)
        assert computed.strain < 1e-14 and abs(computed.volume) < 1e-14
        system = deformed(target, gradient)
        for computed in error(turned(system, rotation), target), error(system, turned(target, rotation)):
            assert computed.volume == pytest.approx(np.linalg.det(gradient) - 1, rel=1e-11)
            assert computed.strain == pytest.approx(expected, rel=1e-11)
            assert computed.largest < 1e-12  # all of it is homogeneous


@pytest.mark.parametrize("pbc", PERIODIC[1:])
def test_strain_of_slabs_wires_and_molecules_is_that_of_the_periodic_rows(pbc, rng):
    """Against the metric of the periodic rows, in orthonormal coordinates of the target's (Cholesky)."""
    pbc = np.array(pbc)
    target = system_of(rng.uniform(0, 9, size=(3, 3)), SKEWED, pbc)
    cell = SKEWED + rng.normal(size=(3, 3))
    computed = error(target._replace(cell=cell), target)
    triangle = np.linalg.inv(np.linalg.cholesky(target.cell[pbc] @ target.cell[pbc].T))
    metric = triangle @ cell[pbc] @ cell[pbc].T @ triangle.T
    assert computed.strain == pytest.approx(np.linalg.norm(metric - np.eye(pbc.sum())) / 2, rel=1e-11, abs=1e-14)
    assert computed.volume == pytest.approx(np.sqrt(np.linalg.det(metric)) - 1, rel=1e-11, abs=1e-14)
    without = np.where(pbc[:, None], cell, 0)
    np.testing.assert_allclose(error(target._replace(cell=without), target), computed, rtol=1e-12)


def test_slab_with_another_cell_in_its_plane(rng):
    """Against a crystal with a vacuum."""
    cells = [np.array([[5, 0.3, 0], [1, 6, 0], [0, 0, 50]]) * [s, 1, 1] for s in (1.0, 1.04)]
    x, y = rng.uniform(0, 5, size=(2, 6, 3))
    slabs = [system_of(p, c, (True, True, False), SIX) for p, c in zip((x, y), cells, strict=True)]
    crystals = [s._replace(pbc=np.ones(3, bool)) for s in slabs]
    np.testing.assert_allclose(error(*slabs), error(*crystals), rtol=1e-12)
    np.testing.assert_allclose(displacement(*slabs)[:, 2], centred(y - x, slabs[0])[:, 2], atol=1e-12)


def test_wire_is_stretched_and_tilted_to_the_targets(rng):
    wire = system_of(rng.uniform(0, 3, size=(6, 3)), np.diag([0, 0, 7.0]), (False, False, True), SIX)
    stretched = deformed(wire, np.diag([1, 1, 1.1]))
    computed = error(stretched, wire)
    assert (
        computed.largest < 1e-12 and computed.volume == pytest.approx(0.1) and computed.strain == pytest.approx(0.105)
    )
    for axis in np.eye(3)[:2]:  # a quarter of a turn about a normal
        for angle in (0.1, np.pi / 2):
            computed = error(turned(stretched, Rotation.from_rotvec(angle * axis)), wire)
            assert (
                computed.largest < 1e-12
                and computed.volume == pytest.approx(0.1)
                and computed.strain == pytest.approx(0.105)
            )


@functools.partial(jax.jit, static_argnums=2)
def derivatives(system, target, dtype=np.float64):
    """All errors and their derivatives with respect to positions and cell, computed at the given precision."""
    system, target = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, (system, target))

    def value(positions, cell):
        return structure_error(system._replace(positions=positions, cell=cell), target)

    return value(system.positions, system.cell), jax.jacrev(value, argnums=(0, 1))(system.positions, system.cell)


def numeric_derivative(system, target, dx, dh, h=1e-3):
    """Differences of fourth order along a change of positions and cell, for every error."""

    def value(t):
        moved = system._replace(positions=system.positions + t * dx, cell=system.cell + t * dh)
        return np.array(error(moved, target))

    return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)


@pytest.mark.parametrize("pbc", [*PERIODIC, (True, True, False)])
def test_derivatives_are_those_of_differences(pbc, rng):
    """The rotation of a molecule is held in the derivative of dq; differences, which let it follow, agree."""
    system = system_of(rng.uniform(0, 9, size=(WIDTH, 3)), SKEWED, pbc, [1, 6, 8, 14, 7, 7, 79, 3])
    target = deformed(system, np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
    target = at(target, target.positions + 0.3 * rng.normal(size=(WIDTH, 3)))
    target = target if any(pbc) else turned(target, Rotation.random(rng=rng))
    held = [True, any(pbc), any(pbc), True, True]  # of a molecule's rmsd and largest it is no derivative
    _, jacobian = derivatives(system, target)
    for _ in range(3):
        dx, dh = rng.normal(size=(WIDTH, 3)), rng.normal(size=(3, 3))
        exact = np.array([np.vdot(to_x, dx) + np.vdot(to_h, dh) for to_x, to_h in jacobian])
        numeric = numeric_derivative(system, target, dx, dh)
        np.testing.assert_allclose(exact[held], numeric[held], rtol=1e-8, atol=1e-9)


DEGENERATE = {
    "crystal": system_of([[0, 0, 0], [1, 2, 3], [4, 4, 4]], SKEWED),
    "one atom in a cell": system_of([[1, 2, 3]], SKEWED),
    "slab": system_of([[0, 0, 0], [1, 2, 3]], SKEWED, (True, True, False)),
    "wire": system_of([[0, 0, 0], [1, 2, 3]], SKEWED, (False, True, False)),
    "molecule": water_dimer(),
    "coplanar": host_system(ase.build.molecule("H2O")),
    "linear": host_system(ase.build.molecule("CO2")),
    "atom": system_of([[1, 2, 3]], np.zeros((3, 3)), (False,) * 3),
    "tetrahedron": host_system(ase.build.molecule("CH4")),
    "no lattice vectors": system_of([[0, 0, 0], [1, 2, 3]], np.zeros((3, 3))),
    "flat cell": system_of([[0, 0, 0], [1, 2, 3]], [(5, 0, 0), (0, 5, 0), (5, 5, 0)]),
    "no atoms": system_of(np.zeros((2, 3)), np.zeros((3, 3)), (False,) * 3, [0, 0]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_equal_structures_have_distance_and_gradient_zero(name, dtype):
    system = pad(DEGENERATE[name], WIDTH)
    value, jacobian = derivatives(system, system, dtype)
    np.testing.assert_array_equal(value, 0)
    for field in FIELDS[:-1]:  # the volume changes at first order
        for derivative in getattr(jacobian, field):
            assert derivative.dtype == dtype
            np.testing.assert_array_equal(derivative, 0)
    assert np.all(np.isfinite(jacobian.volume[1]))


@pytest.mark.parametrize("name", DEGENERATE)
def test_no_nan_between_different_structures(name, dtype, rng):
    system = pad(DEGENERATE[name], WIDTH)
    rotation = Rotation.random(rng=rng)
    jiggled = at(system, system.positions + 0.1 * rng.normal(size=(WIDTH, 3)))
    jiggled = jiggled._replace(cell=system.cell * 1.03)
    collapsed = at(system, np.zeros((WIDTH, 3)))
    for target in jiggled, turned(system, rotation), at(system, -system.positions), collapsed:
        for pair in (system, target), (target, system):
            leaves = jax.tree.leaves(derivatives(*pair, dtype))
            assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
            assert all(leaf.dtype == dtype for leaf in leaves)


def test_batch_is_its_rows(rng):
    """Crystals, slabs, molecules and empty rows side by side, differentiated together."""
    systems = [pad(s, WIDTH) for s in DEGENERATE.values()]
    targets = [at(s, s.positions + 0.1 * rng.normal(size=(WIDTH, 3)))._replace(cell=1.02 * s.cell) for s in systems]
    batch, goal = pytree.stack(systems), pytree.stack(targets)
    fixed = np.zeros((len(systems), WIDTH, 3), bool)
    fixed[::2, 0] = True
    computed, vectors = jax.jit(structure_error)(batch, goal, fixed), jax.jit(aligned_displacement)(batch, goal)
    for row, pair in enumerate(zip(systems, targets, strict=True)):
        np.testing.assert_allclose(pytree.take(computed, row), error(*pair, fixed[row]), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(vectors[row], displacement(*pair), atol=1e-12)
    gradient = jax.jit(jax.grad(lambda x: structure_error(batch._replace(positions=x), goal).dq.sum()))
    assert np.all(np.isfinite(gradient(batch.positions)))


def test_single_precision_is_as_good_as_its_numbers(rng):
    system = system_of(rng.uniform(0, 9, size=(5, 3)), SKEWED)
    target = deformed(system, np.eye(3) + 0.05 * rng.normal(size=(3, 3)))
    target = at(target, target.positions + 0.2 * rng.normal(size=(5, 3)))
    exact = error(system, target)
    single = [s._replace(positions=s.positions.astype("f4"), cell=s.cell.astype("f4")) for s in (system, target)]
    np.testing.assert_allclose(error(*single), exact, rtol=3e-5)


def test_several_structures_in_one_list_are_refused():
    system = system_of(np.zeros((2, 3)))._replace(structure=np.array([0, 1], np.int32))
    with pytest.raises(ValueError, match="takes one structure"):
        structure_error(system, system)


def test_the_precision_of_products_is_left_as_it_was():
    # the one context that both functions shared was entered twice, and set jax's precision for good
    system = host_system(ase.build.bulk("Si"))
    before = jax.config.jax_default_matmul_precision
    jax.eval_shape(structure_error, system, system)
    assert jax.config.jax_default_matmul_precision == before
