"""Parts of the search by themselves: atoms far from a slab, and atoms just on the cutoff."""

import ase.build
import jax
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from lamjax import neighbors
from lamjax.neighbors import Shell
from lamjax.neighbors.host import pairs
from lamjax.system import System, host_system


def test_an_atom_on_the_cutoff_is_a_neighbour_and_counts():
    shells = (Shell(4.0), Shell(3.0))
    line = System(np.array([[0, 0, 0], [3.0, 0, 0], [7.0, 0, 0]]), np.ones(3, np.int32), np.eye(3), np.zeros(3, bool))
    result = jax.jit(neighbors.all_images, static_argnums=(1, 2))(line, shells, (2, 1), np.zeros((1, 3), np.int32))
    assert list(result.largest_counts) == [2, 1] and not result.overflow
    np.testing.assert_array_equal(result.mask.sum(axis=1), [1, 2, 1])
    np.testing.assert_array_equal(result.inner[0].sum(axis=1), [1, 1, 0])
    assert jax.jit(neighbors.all_images, static_argnums=(1, 2))(
        line, shells, (1, 1), np.zeros((1, 3), np.int32)
    ).overflow


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False, False, False)])
@pytest.mark.parametrize("side", [-1, 1])
def test_an_atom_far_from_a_slab_costs_nothing_and_sees_nobody(pbc, side):
    """The search once divided the way there into boxes: 66 s for 10,000 Å."""
    atoms = ase.build.fcc111("Cu", (2, 2, 2), vacuum=5.0, periodic=False)
    atoms.pbc = pbc
    atoms.positions[-1] += (0, 0, side * 1e6)
    atoms.positions[-2] += (0, 0, 7.0)
    i, j, images, r = pairs(host_system(atoms, np.float64), 4.0)
    near = atoms[:-1]
    theirs = neighbor_list("ijdS", near, 4.0)
    order = np.lexsort((theirs[2], theirs[0]))
    np.testing.assert_array_equal(i, theirs[0][order])
    np.testing.assert_allclose(r, theirs[2][order], rtol=1e-12)
    ours = {(*ij, *s) for ij, s in zip(np.stack([i, j], 1).tolist(), images.tolist(), strict=True)}
    assert ours == {(*ij, *s) for ij, s in zip(np.stack(theirs[:2], 1).tolist(), theirs[3].tolist(), strict=True)}
    assert not images[:, ~np.array(pbc)].any()
