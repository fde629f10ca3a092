"""Crystals at their minima, relaxed to rounding, and properties of them as functions of the parameters alone."""

import functools

import ase
import ase.build
import jax
import jax.numpy as jnp
import many_body
import numpy as np
import potentials

import lamjax
from lamjax import neighbors
from lamjax.relaxation import CellConfig, Implicit, RelaxConfig, relax

RELAX = RelaxConfig(fmax=1e-6, max_steps=4000, cell=CellConfig(), adjoint=Implicit(tol=1e-10, polish=3, curvature=1e-7))


@functools.cache
def start(name: str) -> ase.Atoms:
    """Crystals whose atoms move when they are strained."""
    match name:
        case "stillinger_weber":
            return ase.build.bulk("Si", "diamond", a=5.5)
        case "lennard_jones":
            return ase.build.bulk("Cu", "hcp", a=1.31, c=2.10)
        case "gupta":
            return ase.build.bulk("Cu", "hcp", a=1.30, c=2.20)
    raise ValueError(name)


@functools.cache
def potential_of(name: str):
    return many_body.stillinger_weber() if name == "stillinger_weber" else potentials.cases()[name].potential


def list_of(name: str, atoms: ase.Atoms | None = None):
    """A list with some room, in which all structures near the start are relaxed."""
    potential, atoms = potential_of(name), start(name) if atoms is None else atoms
    system = lamjax.from_ase(atoms)
    widths = tuple(
        w + 8 for w in neighbors.plan_capacities(neighbors.count(system, potential.shells), potential.shells)
    )
    return system, neighbors.allocate(system, potential.shells, widths)


def relaxed(potential, params, system, lists, config: RelaxConfig = RELAX):
    """Structure and list where the relaxation with these parameters ends; constants of every derivative."""
    still = jax.lax.stop_gradient
    end = relax(potential, still(params), system, lists, config)
    return still((end.system, neighbors.update(lists, end.system, potential.shells)))


def slopes(measure, params: dict, seed: int = 0, step: float = 2e-4):
    """Along a random change of the parameters: {name: (derivative of `measure`, that of finite differences)}.

    `measure` gives a dict of numbers, of a crystal that is relaxed anew for these parameters.
    """
    rng = np.random.default_rng(seed)
    leaves, form = jax.tree.flatten(params)
    along = jax.tree.unflatten(form, [jnp.asarray(rng.uniform(0.5, 1, np.shape(x)) * x) for x in leaves])

    @jax.jit
    def run(params):
        def both(p):
            found = measure(p)
            return found, found

        slope, values = jax.jacrev(both, has_aux=True)(params)
        return values, slope

    values, slope = run(params)
    moved = lambda t: run(jax.tree.map(lambda x, d: x + t * d, params, along))[0]  # noqa: E731
    far = [moved(k * step) for k in (-2, -1, 1, 2)]
    found = {}
    for name in values:
        a, b, c, d = (float(x[name]) for x in far)
        exact = sum(
            float(jnp.vdot(x, y)) for x, y in zip(jax.tree.leaves(slope[name]), jax.tree.leaves(along), strict=True)
        )
        found[name] = exact, (a - 8 * b + 8 * c - d) / (12 * step)
    return values, found
