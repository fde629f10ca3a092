"""Silicon of Stillinger and Weber, whose properties are in the literature."""

import functools

import jax.numpy as jnp

from lamjax import neighbors
from lamjax.neighbors import Shell
from lamjax.potential import Potential

# a0 5.431 Å, E -4.3363 eV/atom; GPa: C11 151.4, C12 76.4, C44 56.4, C44 of clamped ions 117.2
# (Balamane, Halicioglu, Tiller, Phys. Rev. B 46, 2250 (1992), Table III)
SILICON = {"epsilon": 2.1678, "sigma": 2.0951, "lam": 21.0}
A, B, GAMMA, REACH = 7.049556277, 0.6022245584, 1.2, 1.8
CUTOFF = 3.7712  # a little less than a sigma


@functools.cache
def stillinger_weber() -> Potential:
    """Phys. Rev. B 31, 5262 (1985); parameters epsilon (eV), sigma (Å) and lam are trainable."""

    def init(key=None, dtype=None):
        return {name: jnp.asarray(value, dtype or float) for name, value in SILICON.items()}

    def atomic_energies(params, system, lists):
        d = neighbors.displacements(system, lists) / params["sigma"]
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        inside = lists.mask & (r < REACH - 1e-3)
        gap = jnp.where(inside, r - REACH, -1)
        pair = A * (B / r**4 - 1) * jnp.exp(1 / gap)
        tail = jnp.where(inside, jnp.exp(GAMMA / gap), 0)
        u = d / r[..., None]
        bend = (jnp.einsum("nax,nbx->nab", u, u) + 1 / 3) ** 2
        distinct = ~jnp.eye(r.shape[1], dtype=bool)
        angles = jnp.einsum("na,nb,nab->n", tail, tail, jnp.where(distinct, bend, 0)) / 2
        return params["epsilon"] * (jnp.sum(jnp.where(inside, pair, 0), axis=1) / 2 + params["lam"] * angles)

    atomic_energies.finite_alone = True
    return Potential("stillinger weber", (Shell(CUTOFF),), init, atomic_energies)
