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


def fcc(a: float = 1.86) -> ase.Atoms:
    return ase.build.bulk("Cu", "fcc", a=a)


def vacancy(crystal: ase.Atoms) -> ase.Atoms:
    """Seven atoms and a hole."""
    atoms = crystal.repeat((2, 2, 2))
    del atoms[3]
    return atoms


def slab(a: float = 1.86) -> ase.Atoms:
    """Three layers (111) and a vacuum; its lattice vectors in the plane are some of `fcc`."""
    atoms = ase.build.make_supercell(fcc(a), np.array([[1, -1, 0], [0, 1, -1], [1, 1, 1]]))
    atoms.cell[2] *= 3.5
    return atoms


@functools.cache
def potential_of(name: str):
    return many_body.stillinger_weber() if name == "stillinger_weber" else potentials.cases()[name].potential


def list_of(name: str, atoms: ase.Atoms | None = None):
    """A crystal and a list with some room, in which all structures near it are relaxed."""
    return room(potential_of(name), start(name) if atoms is None else atoms)


def room(potential, atoms: ase.Atoms):
    system = lamjax.from_ase(atoms)
    small = system._replace(positions=0.96 * system.positions, cell=0.96 * system.cell)
    counts = neighbors.count(small, potential.shells)
    widths = tuple(w + 8 for w in neighbors.plan_capacities(counts, potential.shells))
    return system, neighbors.allocate(system, potential.shells, widths)


def relaxed(potential, params, system, lists, config: RelaxConfig = RELAX):
    """Structure and list where the relaxation with these parameters ends; constants of every derivative."""
    still = jax.lax.stop_gradient
    end = relax(potential, still(params), system, lists, config)
    return still((end.system, neighbors.update(lists, end.system, potential.shells)))


def slopes(measure, params, seed: int = 0, step: float = 2e-4) -> tuple[float, float]:
    """Along a random change of the parameters: the derivative of `measure`, and that of finite differences.

    `measure` gives an array of numbers of a crystal that is relaxed anew for these parameters; each counts relative to
    its size.
    """
    rng = np.random.default_rng(seed)
    leaves, form = jax.tree.flatten(params)
    along = jax.tree.unflatten(form, [jnp.asarray(rng.uniform(0.5, 1, np.shape(x)) * x) for x in leaves])

    @jax.jit
    def run(params, weights):
        def total(params):
            values = measure(params)
            return jnp.vdot(weights, values), values

        return jax.value_and_grad(total, has_aux=True)(params)

    number = len(jax.eval_shape(measure, params))
    (_, values), _ = run(params, jnp.ones(number))
    weights = jnp.asarray(rng.uniform(0.5, 1.5, number)) / values
    _, slope = run(params, weights)

    def moved(t: float) -> float:
        return float(run(jax.tree.map(lambda x, d: x + t * d, params, along), weights)[0][0])

    numeric = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
    pairs = zip(jax.tree.leaves(slope), jax.tree.leaves(along), strict=True)
    return sum(float(jnp.vdot(x, y)) for x, y in pairs), numeric
