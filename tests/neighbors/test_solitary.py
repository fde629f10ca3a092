"""Atoms without neighbours are shown with one, and leave no trace in energies and derivatives."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, numerics, pytree
from lamjax.neighbors import Shell, solitary
from lamjax.potential import Potential
from lamjax.system import host_system, pad

SHELLS = (Shell(3.0), Shell(2.0))
CASES = {  # positions of atoms, of how many in all, and numbers
    "a pair and padding": ([(0, 0, 0), (1.5, 0, 0)], 5),
    "a lone one first": ([(40, 0, 0), (0, 0, 0), (1.5, 0, 0)], 4),
    "nobody sees anybody": ([(0, 0, 0), (40, 0, 0), (0, 40, 0)], 4),
    "four lone ones and padding": ([(0, 0, 0), (40, 0, 0), (0, 40, 0), (0, 0, 40)], 7),
    "one atom": ([(0, 0, 0)], 1),
    "one atom and padding": ([(5, 0, 0)], 3),
}


def made(name: str):
    positions, n = CASES[name]
    system = pad(host_system(ase.Atoms(f"Cu{len(positions)}", positions)), n)
    return jax.tree.map(jnp.asarray, (system, neighbors.host_neighbors(system, SHELLS, (4, 4))))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_of_them_sees_one_atom_at_a_usual_distance(name, padding):
    system, lists = made(name)
    chosen = ~np.any(lists.mask, axis=1) & ((system.numbers == 0) | (not padding))
    seen, shown = solitary.accompanied(system, lists, chosen, 8, 1.0)
    r = np.linalg.norm(neighbors.displacements(seen, shown), axis=-1)[:, 0]
    assert np.all(np.asarray(shown.mask).sum(axis=1)[chosen] == 1) and np.all(np.asarray(shown.inner[0])[chosen, 0])
    assert np.all((r[chosen] > 0.5) & (r[chosen] < 2.0))
    assert np.all(np.asarray(seen.numbers)[chosen] == 29)
    for old, new in ((system.positions, seen.positions), (lists.mask, shown.mask), (lists.indices, shown.indices)):
        np.testing.assert_array_equal(np.asarray(old)[~chosen], np.asarray(new)[~chosen])


def of_a_sum(function) -> Potential:
    """c f(Σ_j exp(-b r_ij)) for every atom."""

    def atomic_energies(params, system, lists):
        r = numerics.safe_norm(neighbors.displacements(system, lists))
        return params["c"] * function(jnp.sum(jnp.where(lists.mask, jnp.exp(-params["b"] * r), 0), axis=1))

    return Potential(
        "f of a sum", (Shell(3.0),), lambda: {"b": jnp.asarray(0.7), "c": jnp.asarray(-1.3)}, atomic_energies
    )


@pytest.mark.parametrize(
    "function", [jnp.sqrt, jnp.log, lambda x: 1 / x, lambda x: x**0.3], ids="sqrt log 1/x x^y".split()
)
def test_padding_and_empty_rows_leave_no_trace(function):
    """Also side by side, where no branch can be left out."""
    potential = of_a_sum(function)
    system = host_system(ase.Atoms("Cu3", [(0, 0, 0), (1.5, 0, 0), (0.2, 1.7, 0)]))

    def loss(params, positions, system, lists):
        prediction = lamjax.predict(potential, params, system._replace(positions=positions), lists)
        return prediction.energy + jnp.sum(prediction.forces**2) + jnp.sum(prediction.virial**2)

    def row(n: int):
        padded = pad(system, n)
        return padded, neighbors.host_neighbors(padded, potential.shells, (4,))

    gradient = jax.grad(loss, argnums=(0, 1))
    params, (alone, lists) = potential.init(), row(3)
    expected = jax.jit(gradient)(params, alone.positions, alone, lists)
    rows = pytree.stack([row(5), jax.tree.map(np.zeros_like, row(5))])
    side_by_side = jax.jit(jax.vmap(gradient, (None, 0, 0, 0)))
    by_params, by_positions = side_by_side(params, rows[0].positions, *rows)
    np.testing.assert_allclose(by_positions[0, :3], expected[1], rtol=1e-10)
    assert not np.any(by_positions[0, 3:]) and not np.any(by_positions[1])
    for name in params:
        np.testing.assert_allclose(by_params[name], [expected[0][name], 0], rtol=1e-10)


def test_a_list_that_is_changed_is_not_taken_for_the_old_one():
    """Vectors that were computed before belong to just these positions and these neighbours."""
    system, lists = made("a pair and padding")
    vectors = neighbors.displacements(system, lists)
    marked = jnp.full_like(vectors, 7.0)
    known = neighbors.types.Known(marked, system.positions, system.cell, lists.indices, lists.images)
    lists = lists._replace(known=known)
    assert neighbors.displacements(system, lists)[0, 0, 0] == 7
    moved = system._replace(positions=2 * system.positions)
    assert neighbors.displacements(moved, lists)[0, 0, 0] == 3
    assert neighbors.displacements(system, lists._replace(indices=lists.indices + 0))[0, 0, 0] == 1.5
    assert neighbors.displacements(system._replace(cell=system.cell + 0), lists)[0, 0, 0] == 1.5


def test_what_does_not_look_at_neighbours_is_left_alone():
    """Atoms in a well: nothing is evaluated twice, and a lone atom feels its force."""
    calls = []

    def atomic_energies(params, system, lists):
        calls.append(1)
        return jnp.where(system.numbers > 0, params["k"] * jnp.sum(system.positions**2, axis=1), 0)

    well = Potential("well", (Shell(1.0),), lambda: {"k": jnp.asarray(0.5)}, atomic_energies)
    system, _ = made("one atom and padding")
    lists = neighbors.host_neighbors(system, well.shells, (4,))
    program = jax.make_jaxpr(lambda s, n: well.energy(well.init(), s, n))(system, lists)
    assert "cond" not in str(program) and len(calls) == 1
    np.testing.assert_allclose(lamjax.predict(well, well.init(), system, lists).forces[0], [-5, 0, 0])
