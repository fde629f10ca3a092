"""The lattice of a cell: completed to a basis, reduced, its images, projections and strain, on the host and in jax."""

import itertools

import ase.geometry
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures
from scipy.spatial.transform import Rotation

from lamjax import lattice

reduce = jax.jit(lattice.reduced_lattice)


@pytest.mark.parametrize("pbc", list(itertools.product((False, True), repeat=3)))
def test_a_cell_in_any_direction_is_completed_by_unit_normals(pbc, rng):
    """Lattice vectors in no plane of the coordinate system: what a normal is divided by shows."""
    cell, pbc = rng.normal(size=(3, 3)) * [[3.0], [5.0], [7.0]], np.array(pbc)
    on_device = jax.jit(lattice.basis)(jnp.asarray(cell), jnp.asarray(pbc))
    result = lattice.complete_cell(cell, pbc)
    np.testing.assert_allclose(on_device, result, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(result[pbc], cell[pbc])
    made = result[~pbc]
    np.testing.assert_allclose(made @ made.T, np.eye(len(made)), atol=1e-12)
    np.testing.assert_allclose(made @ cell[pbc].T, 0, atol=1e-11)


def test_face_distances_of_a_skewed_cell():
    cell = structures.triclinic().cell.array
    expected = [abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[k - 2], cell[k - 1])) for k in range(3)]
    np.testing.assert_allclose(lattice.face_distances(cell, np.ones(3, bool)), expected, rtol=1e-13)
    np.testing.assert_array_equal(lattice.face_distances(np.ones((3, 3)), np.ones(3, bool)), 0)  # they span nothing


def test_reduced_lattice_is_minkowskis(rng):
    for _ in range(30):
        cell = np.round(rng.normal(size=(3, 3)) * 3 * np.tri(3, k=-1) + np.eye(3)) @ (
            rng.normal(size=(3, 3)) + 3 * np.eye(3)
        )
        transform = np.asarray(reduce(cell, np.ones(3, bool)))
        expected, _ = ase.geometry.minkowski_reduce(cell)
        assert abs(round(np.linalg.det(transform))) == 1
        lengths = np.sort(np.linalg.norm(transform @ cell, axis=1))
        np.testing.assert_allclose(lengths, np.sort(np.linalg.norm(expected, axis=1)), rtol=1e-6)


@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=2)))
def test_a_vector_that_two_steps_together_make_shorter_is_reduced(signs):
    """Neither step alone shortens the third vector, and both have to go the right way."""
    gram = np.array([[1, -0.3, 0.45], [-0.3, 1, 0.45], [0.45, 0.45, 1.2]])
    flip = np.diag([*signs, 1.0])
    cell = np.linalg.cholesky(flip @ gram @ flip)
    transform = np.asarray(reduce(cell, np.ones(3, bool)))
    expected, _ = ase.geometry.minkowski_reduce(cell)
    lengths = np.linalg.norm(transform @ cell, axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.sort(np.linalg.norm(expected, axis=1)), rtol=1e-6)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
def test_nearest_image_is_that_of_ase(pbc, rng):
    for _ in range(5):
        cell = rng.normal(size=(3, 3)) + np.diag([3, 4, 5]) + 6 * np.eye(3, k=1)
        if not all(pbc):
            cell = lattice.complete_cell(cell, np.array(pbc))
        d = rng.uniform(-9, 9, size=(4, 5, 3))
        _, lengths = ase.geometry.find_mic(d.reshape(-1, 3), cell, pbc)
        result = lattice.shortest(d, cell, np.array(pbc))
        np.testing.assert_allclose(np.linalg.norm(result, axis=-1).ravel(), lengths, atol=1e-9)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
def test_images_on_the_device_are_those_on_the_host(pbc, rng):
    """Both ways of finding the shortest image, in a cell that is not reduced."""
    cell, pbc = rng.normal(size=(3, 3)) + np.diag([3, 4, 5]) + 6 * np.eye(3, k=1), np.array(pbc)
    d = rng.uniform(-9, 9, size=(20, 3))
    images = lattice.nearest_image(jnp.asarray(d), jnp.asarray(cell), jnp.asarray(pbc), reduce(cell, pbc))
    np.testing.assert_allclose(d + images @ cell, lattice.shortest(d, cell, pbc), atol=1e-9)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
def test_a_projection_keeps_lattice_vectors_and_removes_their_normals(pbc, rng):
    cell, pbc = rng.normal(size=(3, 3)) + 3 * np.eye(3), np.array(pbc)
    onto = lattice.projector(cell, pbc)
    np.testing.assert_allclose(lattice.projector(jnp.asarray(cell), jnp.asarray(pbc)), onto, atol=1e-14)
    complete = lattice.complete_cell(cell, pbc)
    np.testing.assert_allclose(complete @ onto, np.where(pbc[:, None], complete, 0), atol=1e-13)


def test_images_reach_as_far_as_the_cutoff_and_no_image_is_left_out(rng):
    """All lattice points whose cell a sphere around a wrapped atom may touch, by brute force over corners."""
    cell, pbc = rng.normal(size=(3, 3)) + 3 * np.eye(3), np.array([True, True, False])
    offsets = lattice.image_offsets(cell, pbc, 4.0)
    assert not offsets[0].any() and not offsets[:, 2].any()
    assert lattice.reach(jnp.asarray(cell), jnp.asarray(pbc), jnp.asarray(offsets)) >= 4.0
    atoms = rng.uniform(0, 1, size=(200, 3)) * [1, 1, 0] @ cell
    images = np.array([(a, b, 0) for a, b in itertools.product(range(-9, 10), repeat=2)])
    near = np.linalg.norm(atoms[:, None] + (images @ cell)[:, None, None] - atoms, axis=-1).min(axis=(1, 2)) < 4.0
    assert {tuple(x) for x in images[near]} <= {tuple(x) for x in offsets.tolist()}


def test_strain_between_cells(rng):
    cell, change = 4 * np.eye(3) + rng.normal(size=(3, 3)), 0.1 * rng.normal(size=(3, 3))
    strained = cell @ (np.eye(3) + change)
    np.testing.assert_allclose(lattice.deformation(strained, cell), change, atol=1e-13)
    turn = Rotation.random(rng=rng).as_matrix()
    expected = ((np.eye(3) + change) @ (np.eye(3) + change).T - np.eye(3)) / 2
    for turned in (turn, -turn):
        result, volume = lattice.green_lagrange(jnp.asarray(strained @ turned), jnp.asarray(cell))
        np.testing.assert_allclose(result, expected, atol=1e-12)
        np.testing.assert_allclose(volume, np.linalg.det(np.eye(3) + change) - 1, atol=1e-12)


def test_the_widest_empty_interval_is_found_across_the_border(rng):
    """Three atoms between 0.2 and 0.6 along c, moved by lattice vectors: 0.6 of it is empty, up to 0.2."""
    fractional = np.array([[0.1, 0.9, 0.2], [0.5, 0.4, 0.6], [0.9, 0.1, 0.35]]) + rng.integers(-3, 4, (3, 3))
    lengths, ends = lattice.empty_intervals(fractional)
    np.testing.assert_allclose(lengths, [0.4, 0.5, 0.6], atol=1e-12)
    np.testing.assert_allclose(ends[1:], [0.9, 0.2], atol=1e-12)
