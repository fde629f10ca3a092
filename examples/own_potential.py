"""A potential of your own: Mie's, of repulsion r⁻ⁿ and attraction r⁻ᵐ between all pairs (Ann. Phys. 316, 657, 1903).

It relaxes, trains, simulates and goes into the calculator as any other; commands take it by the name of a function:

    PYTHONPATH=examples lamjax relax --potential own_potential:mie_of,n=12,m=6 clusters.xyz
"""

import jax.numpy as jnp

import lamjax
from lamjax import neighbors, numerics
from lamjax.neighbors import Shell

CUTOFF = 6.0  # Å
INITIAL = {"depth": 0.4, "distance": 2.6, "n": 9.0, "m": 5.0}  # eV, Å, 1, 1


def init(key=None, dtype=None):
    """The parameters, any pytree of arrays."""
    return {name: jnp.asarray(value, dtype or float) for name, value in INITIAL.items()}


def atomic_energies(params, system, nbrs):
    """(n_atoms,) eV, half of the energy of each pair of an atom; a minimum of -depth at the distance."""
    r = numerics.safe_norm(neighbors.displacements(system, nbrs))  # (n_atoms, capacity) Å
    r = jnp.where(nbrs.mask, r, CUTOFF)  # empty slots: before the powers, so that no NaN reaches a gradient
    n, m = params["n"], params["m"]
    x = params["distance"] / r
    pairs = params["depth"] * (m * x**n - n * x**m) / (n - m)
    return jnp.sum(numerics.switch(r, 0.7 * CUTOFF, CUTOFF) * pairs, axis=1) / 2


mie = lamjax.Potential("mie", (Shell(CUTOFF),), init, atomic_energies, receptive_field=CUTOFF)


def mie_of(n=9.0, m=5.0):
    """The potential with parameters of other exponents: what commands and files call `own_potential:mie_of,n=12`."""
    return mie, init() | {"n": jnp.asarray(float(n)), "m": jnp.asarray(float(m))}
