"""A list with a skin gives what a search would find, until it says that it no longer can."""

import ase
import ase.build
import jax.numpy as jnp
import numpy as np
import pytest
from skin_lists import afresh, narrow, same, search, stale, started

from lamjax import neighbors
from lamjax.neighbors import Shell, verlet
from lamjax.neighbors.search import nearest

SHELLS = (Shell(4.0), Shell(2.9))
CUT = (Shell(4.0, 8), Shell(2.9, 4))  # the model keeps fewer than there are


def crystal() -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    return atoms


def skewed() -> ase.Atoms:
    cell = [[3.4, 0, 0], [1.5, 3.3, 0], [-1.2, 1, 3.5]]
    return ase.Atoms("Cu2", positions=[(0, 0, 0), (1.8, 1.9, 0.3)], cell=cell, pbc=True)


def slab() -> ase.Atoms:
    atoms = ase.build.fcc111("Cu", (2, 2, 3), vacuum=6)
    atoms.rattle(0.1, seed=1)
    return atoms


def molecule() -> ase.Atoms:
    return ase.Atoms("Cu5", positions=[(0, 0, 0), (2.4, 0, 0), (1.2, 2.2, 0.1), (1.3, 0.7, 2.0), (-1.2, 1.5, 1.4)])


@pytest.mark.parametrize("make", [crystal, skewed, slab, molecule])
def test_list_is_that_of_a_search_wherever_it_is_not_stale(make, rng):
    """Random walks of atoms and cell; every list is checked, and some are searched anew."""
    system, lists, template = started(make(), SHELLS, 0.8)
    searched = 0
    for _ in range(25):
        strain = np.eye(3) + 0.002 * rng.normal(size=(3, 3))
        system = system._replace(
            positions=system.positions @ strain + 0.06 * rng.normal(size=system.positions.shape),
            cell=system.cell @ strain,
        )
        if stale(lists, system, SHELLS):
            lists, searched = search(lists, system, SHELLS, 0.8), searched + 1
        same(narrow(lists, system, SHELLS, template.capacities), afresh(template, system, SHELLS))
    assert 1 <= searched <= 20


def test_skin_is_what_an_atom_and_the_cell_may_move():
    system, lists, _ = started(crystal(), SHELLS, 0.8)
    assert float(lists.radius) == pytest.approx(4.8)
    for distance, expected in ((0.39, False), (0.41, True)):
        moved = system._replace(positions=system.positions.at[2, 1].add(distance))
        assert bool(stale(lists, moved, SHELLS)) == expected
    for strain, expected in ((-0.09, False), (-0.11, True)):  # 4.8 (1 + strain) = 4 at -1/6; the norm bounds by sqrt 3
        squeezed = system._replace(positions=system.positions * (1 + strain), cell=system.cell * (1 + strain))
        assert bool(stale(lists, squeezed, SHELLS)) == expected
    together = system._replace(positions=system.positions + jnp.array([0.3, 0, 0]))
    assert not stale(lists, together, SHELLS)


def test_narrow_list_has_less_skin_and_misses_nobody():
    """Slots for the neighbours of the start only: the skin shrinks to what they hold; then searches come sooner."""
    system, lists, template = started(crystal(), SHELLS, 2.0, headroom=1.0)
    assert 4.0 <= float(lists.radius) < 6.0
    same(narrow(lists, system, SHELLS, template.capacities), afresh(template, system, SHELLS))


def test_few_images_have_less_skin_and_too_few_overflow():
    system, lists, template = started(skewed(), SHELLS, 0.8)
    for cutoff, overflow in ((4.0, False), (1.5, True)):
        offsets = jnp.asarray(neighbors.image_offsets(system.cell, system.pbc, cutoff))
        few = template._replace(offsets=offsets)
        made = search(verlet.empty(system, few, SHELLS, 0.8), system, SHELLS, 0.8)
        assert bool(narrow(made, system, SHELLS, template.capacities).overflow) == overflow


def test_what_the_model_cuts_is_cut_as_in_a_search():
    system, lists, template = started(crystal(), CUT, 0.5)
    made = narrow(lists, system, CUT, template.capacities)
    assert made.truncated
    same(made, afresh(template, system, CUT))


def test_nan_is_stale_and_overflows():
    system, lists, template = started(molecule(), SHELLS, 0.5)
    broken = system._replace(positions=system.positions.at[0, 0].set(jnp.nan))
    assert stale(lists, broken, SHELLS)
    assert narrow(search(lists, broken, SHELLS, 0.5), broken, SHELLS, template.capacities).overflow


def test_a_list_that_was_never_made_is_stale_whatever_became_of_the_cell():
    system, lists, _ = started(crystal(), SHELLS, 0.5)
    larger = system._replace(positions=8 * system.positions, cell=8 * system.cell)
    assert stale(lists._replace(radius=-jnp.ones_like(lists.radius)), larger, SHELLS)


def test_the_nearest_keep_their_digits(rng):
    """Sorted as float32 numbers, which some of these are equal as; empty places come last."""
    squared = rng.uniform(1, 30, (7, 40))
    squared[:, 5:9] = squared[:, :4] * (1 + 1e-12)
    squared[2, 3:] = np.inf
    kept, slot = (np.asarray(x) for x in nearest(jnp.asarray(squared), 12))
    assert kept.dtype == np.float64
    np.testing.assert_allclose(kept, np.sort(squared)[:, :12], rtol=1e-6)
    there = np.isfinite(kept)
    np.testing.assert_array_equal(kept[there], np.take_along_axis(squared, slot, axis=1)[there])
    np.testing.assert_array_equal(there.sum(axis=1), [12, 12, 3, 12, 12, 12, 12])
    assert np.all(np.diff(kept.astype(np.float32)[there.all(axis=1)]) >= 0)
