"""The deviation of a committee against numpy over its members one by one; one program serves them all."""

import ase.build
import jax
import numpy as np
import potentials
import pytest
import structures
import students

import lamjax
from lamjax import classical, committee, data
from lamjax.data import from_atoms


def by_hand(forces: np.ndarray) -> np.ndarray:
    """sqrt(<|F - <F>|²>) of every atom, forces (members, atoms, 3)."""
    different = forces - forces.mean(axis=0)
    return np.sqrt(np.mean(np.sum(different**2, axis=2), axis=0))


def test_deviation_is_that_of_members_one_by_one():
    case = students.case()
    members = [potentials.random_params(case.potential, seed, 0.0) for seed in (1, 2, 3)]
    system, lists = potentials.prepare(case.potential, structures.triclinic(), n_atoms=7)
    one = jax.jit(jax.tree_util.Partial(lamjax.predict, case.potential))
    evaluated = [jax.tree.map(np.asarray, one(params, system, lists)) for params in members]
    spread = by_hand(np.stack([p.forces for p in evaluated]))[:5]
    deviation = jax.jit(committee.committee_deviation, static_argnums=0)
    largest = deviation(case.potential, committee.stack_members(members), system, lists)
    np.testing.assert_allclose(largest.largest, spread.max(), rtol=1e-9)
    np.testing.assert_allclose(largest.mean, spread.mean(), rtol=1e-9)
    np.testing.assert_allclose(largest.energy, np.std([p.energy for p in evaluated]) / 5, rtol=1e-9)
    assert largest.largest > 1e-3


def test_every_structure_of_a_list_has_its_own_deviation():
    morse = classical.morse(depth=0.4, width=1.3, distance=2.5, cutoff=4.5)
    frames = [from_atoms(atoms) for atoms in _coppers()]
    packed = data.pack(frames, data.plan(frames, morse.shells, 1))
    (batch,) = data.batches(packed, len(frames), seed=None, epochs=1)
    members = [jax.tree.map(lambda x, f=f: f * x, morse.init()) for f in (0.9, 1.0, 1.2)]
    stacked = committee.stack_members(members)
    each = jax.vmap(lambda s, n: committee.committee_deviation(morse, stacked, s, n))
    rows, predict = jax.jit(each)(batch.system, batch.neighbors), jax.jit(lamjax.predict, static_argnums=0)
    for k, frame in enumerate(frames):
        forces = [predict(morse, p, frame.system, lamjax.allocate(morse, frame.system)).forces for p in members]
        spread = by_hand(np.stack(forces))
        (place,) = np.argwhere(batch.frame == k)
        np.testing.assert_allclose(rows.largest[tuple(place)], spread.max(), rtol=1e-7)
        np.testing.assert_allclose(rows.mean[tuple(place)], spread.mean(), rtol=1e-7)


def test_one_program_serves_all_members():
    traces = []
    morse = classical.morse(cutoff=4.0)

    def energies(params, system, neighbors):
        traces.append(1)
        return morse.atomic_energies(params, system, neighbors)

    counted = morse._replace(atomic_energies=energies)
    run = jax.jit(lambda stacked, s, n: committee.committee_deviation(counted, stacked, s, n))
    system = lamjax.from_ase(structures.triclinic())
    lists = lamjax.allocate(morse, system)
    for factor in (1.0, 1.1):  # other parameters, the same program
        run(
            committee.stack_members([jax.tree.map(lambda x, f=f: f * x, morse.init()) for f in (factor, 1.3)]),
            system,
            lists,
        )
    assert len(traces) == 1


def test_what_a_member_cannot_say_is_no_agreement():
    morse = classical.morse(cutoff=4.0)
    broken = jax.tree.map(lambda x: x * np.nan, morse.init())
    system = lamjax.from_ase(structures.triclinic())
    lists = lamjax.allocate(morse, system)
    deviation = jax.jit(committee.committee_deviation, static_argnums=0)
    largest = deviation(morse, committee.stack_members([morse.init(), broken]), system, lists)
    assert np.isnan(largest.largest) and np.isnan(largest.mean)


def test_members_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one config"):
        committee.stack_members([{"a": np.zeros(2)}, {"a": np.zeros(3)}])


def _coppers():
    for n, seed in ((1, 0), (2, 1), (1, 2)):
        atoms = ase.build.bulk("Cu", cubic=True) * (n, 1, 1)
        atoms.rattle(0.1, seed=seed)
        yield atoms
