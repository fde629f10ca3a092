"""What a neighbour list says when it is too narrow, cut by `sel`, or searched in too few images."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures

import lamjax
from lamjax import classical, neighbors
from lamjax.neighbors import Shell
from lamjax.neighbors.search import FAR
from lamjax.system import System, host_system, pad

CUTOFF = 4.0
SHELLS = (Shell(CUTOFF),)


all_images = jax.jit(neighbors.all_images, static_argnums=(1, 2))
update = jax.jit(neighbors.update, static_argnums=2)


def search(atoms, shells, capacities, offsets=None):
    system = pad(host_system(atoms), structures.N_ATOMS)
    if offsets is None:
        offsets = neighbors.image_offsets(system.cell, system.pbc, shells[0].cutoff)
    return all_images(system, shells, capacities, jnp.asarray(offsets))


def test_host_refuses_a_capacity_that_is_too_small():
    system = host_system(structures.copper())
    with pytest.raises(ValueError, match=r"18 neighbours within 4 Å, capacity is 12. Raise `capacity` to at least 18"):
        neighbors.allocate(system, SHELLS, (12,))
    assert neighbors.allocate(system, SHELLS, (18,)).capacities == (18,)


def test_host_refuses_an_inner_capacity_that_is_too_small():
    with pytest.raises(ValueError, match="12 neighbours within 3 Å, capacity is 8"):
        neighbors.allocate(host_system(structures.copper()), (*SHELLS, Shell(3.0)), (20, 8))


def test_the_public_allocate_passes_the_capacity_on():
    potential = classical.lennard_jones(cutoff=CUTOFF)
    system = lamjax.from_ase(structures.copper())
    assert lamjax.allocate(potential, system, capacity=30).capacities == (30,)
    with pytest.raises(ValueError, match="at least 18"):
        lamjax.allocate(potential, system, capacity=10)


@pytest.mark.parametrize("capacities", [(12, 12), (20, 8)])
def test_search_flags_a_capacity_that_is_too_small(capacities):
    lists = search(structures.copper(), (*SHELLS, Shell(3.0)), capacities)
    assert lists.overflow and list(lists.largest_counts) == [18, 12]
    assert not search(structures.copper(), (*SHELLS, Shell(3.0)), (18, 12)).overflow


def test_host_lists_for_batches_flag_it_too():
    system = host_system(structures.copper())
    assert neighbors.host_neighbors(system, SHELLS, (12,)).overflow
    assert not neighbors.host_neighbors(system, SHELLS, (18,)).overflow


def test_sel_warns_on_the_host_and_is_a_flag():
    system, shells = host_system(structures.copper()), (Shell(CUTOFF, 12),)
    with pytest.warns(UserWarning, match="18 neighbours within 4 Å; the model keeps the nearest 12"):
        cut = neighbors.allocate(system, shells)
    assert cut.truncated and not cut.overflow and cut.capacities == (12,)
    r = np.linalg.norm(neighbors.displacements(system, cut), axis=-1)
    np.testing.assert_allclose(r, 3.615 / 2**0.5, rtol=1e-12)  # exactly the first of two shells of neighbours
    lists = search(structures.copper(), shells, (16,))
    assert lists.truncated and not lists.overflow and np.asarray(lists.mask)[0].sum() == 12
    assert not neighbors.allocate(system, (Shell(CUTOFF, 18),)).truncated  # just enough: not a word


def test_update_keeps_what_went_wrong_before():
    atoms = structures.copper()
    system = pad(host_system(atoms), structures.N_ATOMS)
    narrow = search(atoms, SHELLS, (12,))
    wide = system._replace(cell=2 * system.cell)  # six neighbours at most: fits
    offsets = neighbors.image_offsets(system.cell, system.pbc, CUTOFF)
    fresh = all_images(wide, SHELLS, (12,), jnp.asarray(offsets))
    assert not fresh.overflow
    after = update(narrow, wide, SHELLS)
    assert after.overflow and after.largest_counts[0] == 18 and not np.asarray(after.mask).any()
    cut = search(atoms, (Shell(CUTOFF, 12),), (12,))
    assert update(cut, wide, (Shell(CUTOFF, 12),)).truncated


def test_update_is_a_new_search():
    atoms = structures.triclinic()
    lists = search(atoms, SHELLS, (32,))
    atoms.positions[1] += (0.4, 0.3, -0.6)
    moved, expected = update(lists, pad(host_system(atoms), 8), SHELLS), search(atoms, SHELLS, (32,))
    for got, wanted in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        if got.ndim:  # `found` is a maximum
            assert np.all(np.asarray(got) >= np.asarray(wanted)) or np.array_equal(got, wanted)
    np.testing.assert_array_equal(moved.indices, expected.indices)
    np.testing.assert_array_equal(moved.images, expected.images)


def test_a_cell_that_needs_more_images_overflows():
    atoms = structures.copper()
    offsets = neighbors.image_offsets(atoms.cell.array, atoms.pbc, CUTOFF)
    assert not search(atoms, SHELLS, (64,), offsets).overflow
    fewer = offsets[np.abs(offsets).max(axis=1) < np.abs(offsets).max()]
    assert search(atoms, SHELLS, (64,), fewer).overflow
    padded = np.concatenate([fewer, np.full((10, 3), FAR, np.int32)])  # padding reaches nowhere
    assert search(atoms, SHELLS, (64,), padded).overflow
    atoms.set_cell(0.4 * atoms.cell.array, scale_atoms=True)
    assert search(atoms, SHELLS, (400,), offsets).overflow


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
@pytest.mark.parametrize("pbc", [True, False])
def test_positions_that_make_no_sense_overflow(bad, pbc):
    if bad == 1e9 and not pbc:
        return  # a distant atom of a molecule is one without neighbours
    system = host_system(structures.triclinic())._replace(pbc=np.full(3, pbc))
    system.positions[2, 1] = bad
    offsets = neighbors.image_offsets(system.cell, system.pbc, CUTOFF)
    assert all_images(system, SHELLS, (40,), jnp.asarray(offsets)).overflow


def test_two_atoms_on_one_place_are_refused():
    atoms = structures.triclinic()
    atoms += ase.Atoms("H", positions=[atoms.positions[2] + atoms.cell[0] - 2 * atoms.cell[2]])
    with pytest.raises(ValueError, match="Atoms 2 and 5 are .* apart: two atoms on one place"):
        neighbors.allocate(host_system(atoms), SHELLS)


def test_the_search_works_under_vmap_and_in_single_precision(dtype):
    atoms = [structures.triclinic(), structures.water_box()]
    offsets = neighbors.image_offsets(np.eye(3) * 2.8, np.ones(3, bool), CUTOFF)
    systems = [jax.tree.map(jnp.asarray, pad(host_system(a, dtype), 8)) for a in atoms]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *systems)
    many = jax.vmap(lambda s: all_images(s, SHELLS, (32,), jnp.asarray(offsets)))(batch)
    assert not np.any(many.overflow)
    for k, system in enumerate(systems):
        host = neighbors.host_neighbors(pad(host_system(atoms[k]), 8), SHELLS, (32,))
        np.testing.assert_array_equal(many.mask[k], host.mask)
        d = jnp.linalg.norm(neighbors.displacements(system, jax.tree.map(lambda x, k=k: x[k], many)), axis=-1)
        expected = np.linalg.norm(neighbors.displacements(host_system_padded(atoms[k]), host), axis=-1)
        np.testing.assert_allclose(np.where(host.mask, d, 0), np.where(host.mask, expected, 0), atol=2e-6)


def host_system_padded(atoms) -> System:
    return pad(host_system(atoms), 8)


def test_displacements_differentiate_exactly(rng):
    """d r_ij = dx_j + S_ij dcell - dx_i; nothing on padding, and norms of all have finite gradients."""
    system = host_system_padded(structures.unwrapped())
    lists = neighbors.host_neighbors(system, SHELLS, (32,))
    dx, dcell = rng.normal(size=system.positions.shape), rng.normal(size=(3, 3))

    def vectors(positions, cell):
        return neighbors.displacements(system._replace(positions=positions, cell=cell), lists)

    _, tangent = jax.jvp(vectors, (system.positions, system.cell), (dx, dcell))
    expected = dx[lists.indices] + lists.images @ dcell - dx[:, None]
    np.testing.assert_allclose(tangent, np.where(lists.mask[..., None], expected, 0), rtol=0, atol=1e-13)
    norms = jax.grad(lambda x: jnp.sum(jnp.linalg.norm(vectors(x, system.cell), axis=-1)))(system.positions)
    assert np.isfinite(norms).all() and np.any(norms)


def test_no_gradient_flows_through_the_choice_of_neighbours():
    system = jax.tree.map(jnp.asarray, host_system_padded(structures.triclinic()))
    offsets = jnp.asarray(neighbors.image_offsets(system.cell, np.ones(3, bool), CUTOFF))

    def total(positions, rebuild):
        moved = system._replace(positions=positions)
        lists = all_images(moved if rebuild else system, SHELLS, (32,), offsets)
        r = jnp.linalg.norm(neighbors.displacements(moved, lists), axis=-1)
        return jnp.sum(jnp.where(lists.mask, jnp.exp(-r), 0))

    inside, outside = (jax.grad(total)(system.positions, rebuild) for rebuild in (True, False))
    np.testing.assert_allclose(inside, outside, rtol=0, atol=1e-14)


def test_widths_are_planned_from_what_was_found():
    shells = (Shell(6.0, 60), Shell(4.0, 20), Shell(3.0))
    assert neighbors.plan_capacities((41, 25, 9), shells) == (44, 20, 10)
    assert neighbors.plan_capacities((0, 0, 0), shells) == (4, 2, 2)
    assert neighbors.plan_capacities((90, 90, 90), shells) == (60, 20, 60)


def test_a_structure_of_padding_has_no_neighbours():
    system = System(np.zeros((3, 3)), np.zeros(3, np.int32), np.zeros((3, 3)), np.zeros(3, bool))
    assert neighbors.count(system, SHELLS) == (0,)
    assert not np.any(neighbors.allocate(system, SHELLS).mask)


def test_a_list_without_images_cannot_be_searched_anew():
    system = lamjax.from_ase(ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]]))
    listed = lamjax.allocate(classical.lennard_jones(), system)
    with pytest.raises(ValueError, match="no images to search.*lamjax.allocate"):
        neighbors.update(listed._replace(offsets=listed.offsets[:0]), system, SHELLS)
