"""A list with a skin, and what it is compared with."""

import ase
import jax
import jax.numpy as jnp
import numpy as np

import lamjax
from lamjax import neighbors
from lamjax.neighbors import verlet

search = jax.jit(verlet.search, static_argnums=(2, 3))
stale = jax.jit(verlet.is_stale, static_argnums=2)
narrow = jax.jit(verlet.narrow, static_argnums=(2, 3))
afresh = jax.jit(neighbors.update, static_argnums=2)


def started(atoms: ase.Atoms, shells, skin: float, headroom: float = 1.6):
    """System, a searched list, and the shapes of neighbours."""
    system = jax.tree.map(np.asarray, lamjax.from_ase(atoms))
    counts = tuple(int(headroom * n) for n in neighbors.count(system, shells))
    lists = neighbors.host_neighbors(system, shells, neighbors.plan_capacities(counts, shells))
    offsets = neighbors.image_offsets(0.9 * system.cell, system.pbc, shells[0].cutoff + skin)
    nothing = np.zeros_like(lists.largest_counts)  # `update` keeps the largest
    lists = lists._replace(offsets=offsets, largest_counts=nothing)
    lists = jax.tree.map(jnp.asarray, lists)
    system = jax.tree.map(jnp.asarray, system)
    first = verlet.empty(system, lists, shells, skin)
    assert stale(first, system, shells)
    return system, search(first, system, shells, skin), lists


def same(a: neighbors.Neighbors, b: neighbors.Neighbors) -> None:
    """Who sees whom, in which image, is the same; the order among equal distances is free."""

    def members(lists):
        rows = []
        for i in range(len(lists.indices)):
            seen = [
                (int(j), *map(int, s), tuple(bool(m[i, k]) if k < m.shape[1] else False for m in lists.masks))
                for k, (j, s) in enumerate(zip(lists.indices[i], lists.images[i], strict=True))
                if lists.mask[i, k]
            ]
            rows.append(sorted(seen))
        return rows

    assert members(a) == members(b)
    assert bool(a.overflow) == bool(b.overflow) and bool(a.truncated) == bool(b.truncated)
    np.testing.assert_array_equal(a.largest_counts, b.largest_counts)
