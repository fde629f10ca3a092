"""The neighbour lists against ASE and vesin in random cells: skewed, left-handed, small, partly periodic."""

import functools

import ase
import ase.neighborlist
import hypothesis
import jax
import numpy as np
import vesin
from hypothesis import strategies as st

from lamjax import neighbors
from lamjax.neighbors import Shell
from lamjax.system import face_distances, host_system, pad

N_ATOMS, CAPACITY, N_OFFSETS = 12, 384, 343  # one shape, so the search compiles once
CUTOFF, INNER = 4.0, 2.6


@st.composite
def random_atoms(draw) -> ase.Atoms:
    """1 to 12 atoms, some far outside their cell, whose faces are at least CUTOFF / 3 apart."""
    n = draw(st.integers(1, N_ATOMS))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    left_handed, outside = draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    while True:
        cell = np.diag(rng.uniform(2, 7, 3)) + np.tril(rng.uniform(-4, 4, (3, 3)), -1)
        if min(face_distances(cell, (True, True, True))) > CUTOFF / 3:
            break
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = cell @ turn * (np.sign(np.linalg.det(turn)) * (-1 if left_handed else 1))
    positions = rng.uniform(-0.2, 1.2, (n, 3)) @ cell
    if outside:
        positions += rng.integers(-5, 6, (n, 3)) * np.array(pbc) @ cell
    return ase.Atoms(rng.choice([1, 8, 29], n), positions=positions, cell=cell, pbc=pbc)


@functools.partial(jax.jit, static_argnames="shells")
def search(system, offsets, shells):
    capacities = tuple(CAPACITY for _ in shells)
    return neighbors.all_images(system, shells, capacities, offsets)


def offsets_of(system):
    """The images that a search needs, padded to one length."""
    empty = (Shell(CUTOFF),)
    return neighbors.host_neighbors(system, empty, (4,), N_OFFSETS).offsets


def pair_set(mask, indices, images) -> set:
    """All (i, j, S) of a list."""
    i, slot = np.nonzero(np.asarray(mask))
    j, images = np.asarray(indices)[i, slot], np.asarray(images)[i, slot]
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, images, strict=True)}


def reference_pairs(atoms, cutoff) -> dict:
    """(i, j, S) -> D of ASE, after checking that vesin finds the same pairs."""
    i, j, images, d = ase.neighborlist.neighbor_list("ijSD", atoms, cutoff)
    vectors = {(int(a), int(b), *map(int, s)): v for a, b, s, v in zip(i, j, images, d, strict=True)}
    i, j, images = vesin.ase_neighbor_list("ijS", atoms, cutoff)
    assert vectors.keys() == {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, images, strict=True)}
    return vectors


def check(atoms, system, lists):
    """Same pairs as ASE in both shells, sorted by distance, images exact, displacements those of ASE."""
    expected = reference_pairs(atoms, CUTOFF)
    assert not lists.overflow and not lists.truncated
    assert pair_set(lists.mask, lists.indices, lists.images) == expected.keys()
    assert pair_set(lists.inner[0], lists.indices, lists.images) == reference_pairs(atoms, INNER).keys()
    d = np.asarray(neighbors.displacements(system, lists))
    r = np.where(lists.mask, np.linalg.norm(d, axis=-1), np.inf)
    assert np.all(r[:, 1:] >= r[:, :-1] - 1e-12)
    assert not np.any(np.asarray(lists.mask)[:, 1:] & ~np.asarray(lists.mask)[:, :-1])
    for i, slot in zip(*np.nonzero(np.asarray(lists.mask)), strict=True):
        key = (int(i), int(lists.indices[i, slot]), *map(int, lists.images[i, slot]))
        np.testing.assert_allclose(d[i, slot], expected[key], rtol=0, atol=1e-11)
    empty = ~np.asarray(lists.mask)
    assert np.all(np.asarray(lists.indices)[empty] == np.nonzero(empty)[0])
    assert not np.any(np.asarray(lists.images)[empty])


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(random_atoms())
def test_search_finds_the_pairs_of_ase(atoms):
    system = pad(host_system(atoms), N_ATOMS)
    lists = jax.tree.map(np.asarray, search(system, offsets_of(system), (Shell(CUTOFF), Shell(INNER))))
    check(atoms, system, lists)


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(random_atoms())
def test_allocate_finds_the_pairs_of_ase(atoms):
    system = pad(host_system(atoms), N_ATOMS)
    lists = jax.tree.map(np.asarray, neighbors.allocate(system, (Shell(CUTOFF), Shell(INNER))))
    check(atoms, system, lists)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
@hypothesis.given(random_atoms())
def test_search_keeps_the_nearest_sel(atoms):
    system = pad(host_system(atoms), N_ATOMS)
    shells = (Shell(CUTOFF, 9), Shell(INNER, 3))
    lists = jax.tree.map(np.asarray, search(system, offsets_of(system), shells))
    host = neighbors.host_neighbors(system, shells, (CAPACITY, CAPACITY))
    distances = np.full((N_ATOMS, CAPACITY), np.inf)
    i, _, _, d = ase.neighborlist.neighbor_list("ijSd", atoms, CUTOFF)
    for atom in range(len(atoms)):
        mine = np.sort(d[i == atom])
        distances[atom, : len(mine)] = mine
    for made in (lists, host):
        r = np.linalg.norm(np.asarray(neighbors.displacements(system, made)), axis=-1)
        for shell, mask in zip(shells, made.masks, strict=True):
            kept = np.sort(np.where(mask, r, np.inf), axis=1)[:, : shell.sel]
            nearest = np.where(distances <= shell.cutoff, distances, np.inf)[:, : shell.sel]
            np.testing.assert_allclose(kept, nearest, rtol=0, atol=1e-11)
            assert np.all(mask.sum(axis=1) <= shell.sel)
        assert bool(made.truncated) == any(np.sum(distances <= s.cutoff, axis=1).max() > s.sel for s in shells)
        assert not made.overflow
