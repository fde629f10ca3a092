"""The search by bins finds what the search over all images finds, in every cell, and says when it cannot."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skin_lists import afresh, narrow, same, stale, started

import lamjax
from lamjax.neighbors import Shell, grid, verlet
from lamjax.system import pad

SHELLS = (Shell(4.0), Shell(2.9))
SKIN = 0.5
search = jax.jit(grid.search, static_argnums=(2, 3, 4))


def rattled(atoms: ase.Atoms, seed: int = 0, size: float = 0.2) -> ase.Atoms:
    atoms.rattle(size, seed=seed)
    atoms.positions += np.random.default_rng(seed).integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array  # not wrapped
    return atoms


def cluster(n: int, side: float) -> ase.Atoms:
    return ase.Atoms(f"Cu{n}", positions=np.random.default_rng(n).uniform(0, side, (n, 3)))


CASES = {
    "crystal": rattled(ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (5, 4, 3)),
    "two bins": rattled(ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (3, 2, 2)),
    "one atom": ase.build.bulk("Cu", "fcc", a=3.6),
    "skewed": rattled(
        ase.Atoms("Cu2", [(0, 0, 0), (1.8, 1.9, 0.3)], cell=[[3.4, 0, 0], [1.5, 3.3, 0], [-1.2, 1, 3.5]], pbc=True)
        * (5, 1, 2)
    ),
    "triclinic": rattled(ase.build.bulk("Cu", "fcc", a=3.6) * (7, 6, 5)),
    "slab": rattled(ase.build.fcc111("Cu", (6, 5, 5), vacuum=3)),
    "wire": rattled(
        ase.Atoms("Cu20", [(0.1 * k % 7, 3 * k % 11, 2.1 * k) for k in range(20)], pbc=(0, 0, 1), cell=[0, 0, 42])
    ),
    "cluster": cluster(150, 20),
    "line": ase.Atoms("Cu30", [(1.7 * k, 0, 0) for k in range(30)]),
    "far apart": ase.Atoms("Cu2", [(0, 0, 0), (100, 0, 0)]),
    "single": ase.Atoms("Cu"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_finds_what_all_images_find(name):
    system, reference, lists = started(CASES[name], SHELLS, SKIN)
    planned = grid.plan(system, SHELLS[0].cutoff + SKIN)
    made, fullest = search(verlet.empty(system, lists, SHELLS, SKIN), system, SHELLS, SKIN, planned)
    assert made.usable and fullest <= planned.capacity and not stale(made, system, SHELLS)
    np.testing.assert_array_equal(made.largest_counts, reference.largest_counts)
    assert made.radius == pytest.approx(float(reference.radius), rel=1e-5) or made.radius >= SHELLS[0].cutoff + SKIN
    same(narrow(made, system, SHELLS, lists.capacities), afresh(lists, system, SHELLS))


def test_an_atom_on_the_radius_itself_is_listed():  # where no skin hides it
    system, _, lists = started(ase.Atoms("Cu3", [(0, 0, 0), (4.0, 0, 0), (9.0, 0, 0)]), SHELLS, 0.0)
    empty, planned = verlet.empty(system, lists, SHELLS, 0.0), grid.plan(system, SHELLS[0].cutoff)
    everywhere = jax.jit(verlet.search, static_argnums=(2, 3))
    for made in (search(empty, system, SHELLS, 0.0, planned)[0], everywhere(empty, system, SHELLS, 0.0)):
        np.testing.assert_array_equal(made.mask.sum(axis=1), [1, 1, 0])


def test_padding_is_nobody():
    system = jax.tree.map(np.asarray, lamjax.from_ase(CASES["slab"]))
    planned = grid.plan(system, 4.5)
    padded = jax.tree.map(jnp.asarray, pad(system, system.n_atoms + 7))
    assert grid.plan(padded, 4.5) == planned
    _, _, lists = started(CASES["slab"], SHELLS, SKIN)
    wide = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 7), *((0, 0),) * (x.ndim - 1))), (lists.indices, lists.images, lists.mask)
    )
    empty = verlet.empty(padded, lists._replace(indices=wide[0], images=wide[1], mask=wide[2]), SHELLS, SKIN)
    made, _ = search(empty, padded, SHELLS, SKIN, planned)
    alone, _ = search(
        verlet.empty(jax.tree.map(jnp.asarray, system), lists, SHELLS, SKIN), system, SHELLS, SKIN, planned
    )
    np.testing.assert_array_equal(made.mask[:-7].sum(axis=1), alone.mask.sum(axis=1))
    assert not made.mask[-7:].any()


def test_a_cell_that_shrinks_sees_less_and_then_says_so():
    """The bins shrink with it: first the skin is lost, then the list is not usable."""
    system, _, lists = started(CASES["crystal"], SHELLS, SKIN)
    planned = grid.plan(system, SHELLS[0].cutoff + SKIN)
    empty = verlet.empty(system, lists, SHELLS, SKIN)
    thickness = 14.4 / 3
    for factor, usable in ((0.97, True), (0.9, True), (0.80, False)):
        smaller = system._replace(positions=factor * system.positions, cell=factor * system.cell)
        made, _ = search(empty, smaller, SHELLS, SKIN, planned)
        assert made.usable == usable
        assert made.radius <= min(factor * thickness, 4.5) + 1e-6


def test_a_bin_that_overflows_is_told():
    system, _, lists = started(CASES["crystal"], SHELLS, SKIN)
    planned = grid.plan(system, SHELLS[0].cutoff + SKIN)
    _, fullest = search(verlet.empty(system, lists, SHELLS, SKIN), system, SHELLS, SKIN, planned)
    narrow_bins = planned._replace(capacity=int(fullest) - 1)
    made, number = search(verlet.empty(system, lists, SHELLS, SKIN), system, SHELLS, SKIN, narrow_bins)
    assert not made.usable and number == fullest
    assert narrow(made, system, SHELLS, lists.capacities).overflow
