"""Analytic pair potentials behind the same interface as the learned ones: for tests, benchmarks and teaching."""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from pydantic import Field

from lamjax import neighbors as neighbor_lists
from lamjax import numerics
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.neighbors import Neighbors, Shell
from lamjax.potential import Potential
from lamjax.system import System


@configuration
class PairConfig:
    """The settings of a pair potential."""

    type: str
    initial: tuple[tuple[str, float], ...]
    cutoff: Annotated[float, Field(description="Å")]
    switch_start: Annotated[float, Field(description="Å")]


def lennard_jones(
    sigma: float = 1.0, epsilon: float = 1.0, cutoff: float = 2.5, switch_start: float | None = None
) -> Potential:
    """E = Σ_pairs 4ε((σ/r)¹² - (σ/r)⁶) w(r), w the C² switch from `switch_start` (0.8 cutoff) to `cutoff` (Å, eV).

    Parameters {"sigma", "epsilon"} are trainable.
    """
    return pair_potential(_lennard_jones, {"sigma": sigma, "epsilon": epsilon}, cutoff, switch_start)


def morse(
    depth: float = 1.0,
    width: float = 5.0,
    distance: float = 1.0,
    cutoff: float = 2.5,
    switch_start: float | None = None,
) -> Potential:
    """E = Σ_pairs D (exp(-2a(r - r0)) - 2 exp(-a(r - r0))) w(r), w as in `lennard_jones`.

    Trainable parameters {"depth", "width", "distance"}: D eV, a 1/Å, r0 Å.
    """
    return pair_potential(_morse, {"depth": depth, "width": width, "distance": distance}, cutoff, switch_start)


def pair_potential(
    pair_energy: Callable, initial: dict[str, float], cutoff: float, switch_start: float | None = None
) -> Potential:
    """A potential from `pair_energy(params, r)` (eV, r in Å), switched off smoothly before the cutoff."""
    start = 0.8 * cutoff if switch_start is None else switch_start
    return _build(pair_energy, PairConfig(pair_energy.__name__.strip("_"), tuple(initial.items()), cutoff, start))


@factory
def _build(pair_energy: Callable, config: PairConfig) -> Potential:
    def init(key: Array | None = None, dtype: DTypeLike | None = None) -> dict[str, Array]:
        return {name: jnp.asarray(value, dtype or float) for name, value in config.initial}

    def atomic_energies(params: PyTree, system: System, neighbors: Neighbors) -> Array:
        r = numerics.safe_norm(neighbor_lists.displacements(system, neighbors))
        r = jnp.where(neighbors.mask, r, config.cutoff / 2)  # in an empty slot: some usual distance
        e = pair_energy(params, r) * numerics.switch(r, config.switch_start, config.cutoff)
        return jnp.sum(jnp.where(neighbors.mask, e, 0), axis=1) / 2

    atomic_energies.finite_alone = True
    return Potential(config, (Shell(config.cutoff),), init, atomic_energies, receptive_field=config.cutoff)


def _lennard_jones(params: PyTree, r: Array) -> Array:
    x = (params["sigma"] / r) ** 6
    return 4 * params["epsilon"] * (x * x - x)


def _morse(params: PyTree, r: Array) -> Array:
    x = jnp.exp(-params["width"] * (r - params["distance"]))
    return params["depth"] * (x * x - 2 * x)
