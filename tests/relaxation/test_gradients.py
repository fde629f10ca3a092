"""The gradient through a relaxation is that of finite differences, finite where it could be NaN, and cheap."""

import ase
import ase.build
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import classical, neighbors, pytree
from lamjax.neighbors import Shell
from lamjax.potential import Potential
from lamjax.relaxation import FireConfig, LBFGSConfig, RelaxConfig, Unrolled, relax
from lamjax.system import pad

FIRE = FireConfig()


def cluster(n: int = 6, seed: int = 0) -> ase.Atoms:
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 2, 2)
    order = np.argsort(np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1), kind="stable")
    atoms = ase.Atoms("Cu" * n, positions=atoms.positions[order[:n]])
    atoms.rattle(0.1, seed=seed)
    return atoms


def end(potential, system, lists, adjoint, fmax: float = 0.0, method=FIRE):
    """A smooth number of the last positions, as a function of parameters and first positions."""
    weights = np.random.default_rng(3).normal(size=system.positions.shape)

    def value(params, positions):
        start, config = system._replace(positions=positions), RelaxConfig(fmax, adjoint=adjoint, minimiser=method)
        return jnp.sum(weights * relax(potential, params, start, lists, config).system.positions)

    return value


@pytest.mark.parametrize("adjoint", [Unrolled(20), Unrolled(50, segment=7)], ids=str)
def test_gradient_is_that_of_finite_differences(adjoint):
    potential = models.morse()
    params = models.params_of(potential)
    system = lamjax.from_ase(cluster())
    value = end(potential, system, lamjax.allocate(potential, system, capacity=8), adjoint)
    run = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    (dp, dx) = run(params, system.positions)[1]
    direction = jax.random.normal(jax.random.key(1), system.positions.shape)

    def along(h):
        moved = jax.tree.map(lambda p: p + h * p, params), system.positions + h * direction
        return float(run(*moved)[0])

    h = 2e-5
    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    exact = sum(float(params[k] * dp[k]) for k in params) + float(jnp.vdot(dx, direction))
    assert exact == pytest.approx(numeric, rel=1e-7)


def test_gradient_is_finite_in_every_nasty_row():
    """A perfect crystal, a lone atom, no atoms at all, a cluster already relaxed, two atoms on one place."""
    potential = models.morse()
    params = models.params_of(potential)
    relaxed = cluster(3)
    relaxed.positions = [(0, 0, 0), (2.5, 0, 0), (1.25, 2.5 * 3**0.5 / 2, 0)]
    rows = [ase.build.bulk("Cu", "fcc", a=3.6), ase.Atoms("Cu"), relaxed, cluster(4)]
    hosts = [pad(jax.tree.map(np.asarray, lamjax.from_ase(a)), 4) for a in rows]
    twice = hosts[-1]._replace(positions=np.repeat(hosts[-1].positions[:1], 4, axis=0))
    hosts += [twice, jax.tree.map(np.zeros_like, twice)]
    lists = [neighbors.host_neighbors(s, potential.shells, (64,), 343) for s in hosts]
    systems, lists = pytree.stack(hosts), pytree.stack(lists)
    spiky = classical.pair_potential(lambda p, r: p["depth"] / r**2, {"depth": 1e-3}, 5.0, 3.5)
    for method, model in ((FireConfig(), potential), (FireConfig(), spiky), (LBFGSConfig(memory=3), spiky)):
        p = params if model is potential else models.params_of(spiky)
        value = end(model, systems, lists, Unrolled(12), fmax=0.0, method=method)
        out, grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(p, systems.positions)
        assert np.isfinite(out)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def counting_potential() -> Potential:
    """One atom in a well whose energy holds exactly one arctangent."""

    def atomic_energies(params, system, lists):
        return jnp.where(system.numbers > 0, jnp.arctan(jnp.sum(params["k"] * system.positions**2, axis=1)), 0)

    return Potential("well", (Shell(1.0),), lambda key=None, dtype=None: {"k": jnp.ones(3)}, atomic_energies)


def count(jaxpr, name: str) -> int:
    """How often a primitive occurs in a program and all programs in it."""
    leaves = [p for e in jaxpr.eqns for p in jax.tree.leaves(e.params, is_leaf=lambda p: hasattr(p, "jaxpr"))]
    inner = [p for p in (getattr(leaf, "jaxpr", leaf) for leaf in leaves) if hasattr(p, "eqns")]
    return sum(e.primitive.name == name for e in jaxpr.eqns) + sum(count(p, name) for p in inner)


def test_way_back_does_not_evaluate_the_forces_again():
    """One evaluation a step on the way there, one in the reverse derivative; the forces between are remembered."""
    potential = counting_potential()
    system = lamjax.from_ase(ase.Atoms("H", positions=[(0.3, 0.2, 0.1)]))
    lists = lamjax.allocate(potential, system)
    args = potential.init(), system.positions
    value = end(potential, system, lists, Unrolled(4))
    assert count(jax.make_jaxpr(value)(*args).jaxpr, "atan") == 1
    assert count(jax.make_jaxpr(jax.grad(value))(*args).jaxpr, "atan") == 2


def test_memory_hardly_grows_with_the_number_of_steps():
    potential = models.morse()
    atoms = ase.build.bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    system = lamjax.from_ase(atoms)
    lists = lamjax.allocate(potential, system)
    args = models.params_of(potential), system.positions

    def temporary(steps: int) -> int:
        value = end(potential, system, lists, Unrolled(steps))
        return jax.jit(jax.grad(value)).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporary(200) < 2 * temporary(20)
