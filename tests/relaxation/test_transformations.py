"""Gradients of relaxations inside whatever JAX does to a function: the same numbers in every order."""

import functools

import ase
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax.data import StructureBatch
from lamjax.losses import StructureLossConfig, structure_loss, with_minimiser
from lamjax.relaxation import (
    FireConfig,
    GradientFlowConfig,
    Hybrid,
    Implicit,
    LBFGSConfig,
    RelaxConfig,
    Unrolled,
    UntilConverged,
    relax,
)
from lamjax.relaxation.minimisers import N_NUMBERS
from lamjax.system import Labels

MORSE = models.morse()
ADJOINTS = (Unrolled(3), Unrolled(4, segment=2), UntilConverged(3, checkpoints=2), Implicit(), Hybrid(2))
MINIMISERS = (FireConfig(), GradientFlowConfig(eta=0.05, additive=True), LBFGSConfig(memory=2))


def trimer():
    return ase.Atoms("Cu3", [(0, 0, 0), (2.3, 0, 0), (1.1, 2.2, 0)])


def value_of(config: RelaxConfig):
    """A number of the relaxed structure (and of the window), of parameters and numbers of the minimiser."""
    system = lamjax.from_ase(trimer())
    lists = lamjax.allocate(MORSE, system)

    def value(learned):
        params, numbers = learned
        relaxed = relax(MORSE, params, system, lists, config, numbers=numbers)
        total = relaxed.energy + jnp.sum(relaxed.system.positions[1] * jnp.array([1.0, 0.3, 0.2]))
        return total if relaxed.window is None else total + jnp.sum(jnp.sin(relaxed.window.positions[1]))

    # the minimiser itself is first made inside a trace: what jax-md makes of its settings there must outlive it
    numbers = {"dt_start": 0.1, "alpha_start": 0.1}
    if isinstance(config.minimiser, GradientFlowConfig):
        numbers = {"eta": 0.05, "additive": np.full((N_NUMBERS, 3), 1e-3)}
    if isinstance(config.minimiser, LBFGSConfig):
        numbers = {"curvature": 30.0}
    return value, (models.params_of(MORSE), jax.tree.map(jnp.asarray, numbers))


def two(learned):
    return jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), learned)


def mapped(f):
    return lambda both: jnp.sum(jax.lax.map(f, both))


def scanned(f):
    return lambda both: jax.lax.scan(lambda total, one: (total + f(one), None), 0.0, both)[0]


def chosen(f):
    return lambda one: jax.lax.cond(one[0]["depth"] > 0, f, lambda one: 0.0, one)


# name -> (f -> gradient of it), of one set of parameters or (second entry True) of two, whose first gradient counts
ORDERS = {
    "grad of jit": (lambda f: jax.grad(jax.jit(f)), False),
    "value_and_grad of jit": (lambda f: lambda x: jax.value_and_grad(jax.jit(f))(x)[1], False),
    "jit of grad of jit": (lambda f: jax.jit(jax.grad(jax.jit(f))), False),
    "vmap of grad of jit": (lambda f: jax.vmap(jax.grad(jax.jit(f))), True),
    "grad of vmap of jit": (lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(jax.jit(f))(x))), True),
    "grad of map": (lambda f: jax.grad(mapped(f)), True),
    "grad of scan": (lambda f: jax.grad(scanned(f)), True),
    "grad of cond": (lambda f: jax.grad(chosen(f)), False),
    "grad of checkpoint": (lambda f: jax.grad(jax.checkpoint(f)), False),
    "jacrev of jit": (lambda f: jax.jacrev(jax.jit(lambda x: jnp.stack([f(x), 2 * f(x)]))), False),
}


def nested(f):
    """All at once: the gradient of jit of map of cond of scan of checkpoint of jit."""
    one = chosen(lambda x: scanned(jax.checkpoint(jax.jit(f)))(jax.tree.map(lambda leaf: leaf[None], x)))
    return jax.grad(jax.jit(mapped(one)))


@functools.cache
def expected(config: RelaxConfig):
    value, at = value_of(config)
    return jax.jit(jax.grad(value))(at)


def same(got, config: RelaxConfig) -> None:
    for a, b in zip(*map(jax.tree.leaves, (got, expected(config))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(got[0]))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_becomes_a_program(order):
    """FIRE, whose settings jax-md keeps as arrays. What refers to a value of a trace that is over has no program."""
    make, of_two = ORDERS[order]
    value, at = value_of(RelaxConfig(fmax=1e-2, adjoint=Unrolled(3)))
    assert "while" in jax.jit(make(value)).lower(two(at) if of_two else at).as_text()


@pytest.mark.parametrize("method", MINIMISERS, ids=lambda m: m.type)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_every_adjoint_becomes_a_program_in_all_of_them(adjoint, method):
    value, at = value_of(RelaxConfig(fmax=1e-2, max_steps=50, adjoint=adjoint, minimiser=method))
    assert "while" in jax.jit(nested(value)).lower(two(at)).as_text()


@pytest.mark.parametrize("adjoint", [UntilConverged(3), Hybrid(2)], ids=str)
def test_the_numbers_are_those_of_jit_of_grad(adjoint):
    config = RelaxConfig(fmax=1e-2, max_steps=50, adjoint=adjoint)
    value, at = value_of(config)
    same(jax.grad(jax.jit(value))(at), config)
    if isinstance(adjoint, UntilConverged):
        same(jax.tree.map(lambda x: x[0], nested(value)(two(at))), config)


def test_a_jitted_structure_loss_is_differentiated():
    """With a minimiser that learns, by the optimiser's order: jit first."""
    system = lamjax.from_ase(trimer())
    lists = lamjax.allocate(MORSE, system)
    target = system._replace(positions=1.05 * system.positions)
    labels = Labels(jnp.zeros(()), jnp.zeros((3, 3)), jnp.zeros((3, 3)), jnp.zeros(3))
    batch = StructureBatch(system, lists, target, lists, labels, jnp.zeros((3, 3), bool))
    batch = jax.tree.map(lambda x: x[None], batch)
    config = RelaxConfig(fmax=1e-2, adjoint=Unrolled(2))
    loss = structure_loss(MORSE, StructureLossConfig(config))
    learned = with_minimiser(models.params_of(MORSE), config)
    value = lambda learned: loss(learned, batch)[0]  # noqa: E731
    got, wanted = jax.grad(jax.jit(value))(learned), jax.jit(jax.grad(value))(learned)
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    assert got.potential["distance"] != 0


def test_values_that_a_potential_refers_to_are_differentiated():
    """A potential that is made inside the differentiated function, of floating and of whole numbers there."""
    atoms = trimer()
    system = lamjax.from_ase(atoms)
    lists = lamjax.allocate(MORSE, system)
    config = RelaxConfig(fmax=1e-2, adjoint=Unrolled(2), minimiser=GradientFlowConfig(eta=0.05))

    def value(scales, which):
        def atomic_energies(params, system, around):
            return scales[which] * MORSE.atomic_energies(params, system, around)

        scaled = MORSE._replace(atomic_energies=atomic_energies)
        return relax(scaled, models.params_of(MORSE), system, lists, config).energy

    def by_parameter(depth):
        params = models.params_of(MORSE) | {"depth": depth}
        return relax(MORSE, params, system, lists, config).energy

    at = jnp.array([7.0, 1.2]), jnp.array([1, 1, 1])
    got = jax.grad(jax.jit(value))(*at)
    wanted = jax.jit(jax.grad(by_parameter))(1.2 * models.params_of(MORSE)["depth"])
    np.testing.assert_allclose(got, [0, wanted * models.params_of(MORSE)["depth"]], rtol=1e-9)
