"""Batches of pairs: few shapes with room for the way from start to target, made once, shuffled by seed."""

from pathlib import Path

import ase.build
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms

from lamjax import neighbors, pytree
from lamjax.data import from_atoms, pack_pairs, pair_batches, plan_pairs
from lamjax.data.pairs import pairs_from_frames, read_pairs
from lamjax.neighbors import Shell, image_offsets
from lamjax.shapes import work

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILE = FIXTURES / "si_defects" / "sub_B_1.extxyz"  # one relaxation
VARIABLE = FIXTURES / "mgypo4" / "relaxations.extxyz"  # three, of 13, 16 and 14 atoms
SHELLS = (Shell(4.0), Shell(3.0))


def final(displacement, repeat=(1, 1, 1), fixed=()):
    """A frame of silicon that carries its end."""
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.arrays["final_positions"] = atoms.positions + displacement
    atoms.set_constraint(FixAtoms(list(fixed)) if fixed else None)
    return from_atoms(atoms, source=f"silicon moved by {displacement:g}")


def eights(n: int):
    """Pairs of 8 atoms whose first atom tells them apart."""
    frames = [final(0.01 * k) for k in range(n)]
    for k, frame in enumerate(frames):
        frame.system.numbers[0] = 20 + k
    return pairs_from_frames(frames)


def mixed():
    return eights(5) + read_pairs(FILE) + read_pairs(VARIABLE, variable_cell=True)


def firsts(batches):
    """Number of the first atom and number of atoms of every row: tells pairs apart."""
    return [(int(z[0]), int((z > 0).sum())) for batch in batches for z in np.asarray(batch.start.numbers)]


def test_batches_hold_every_pair_once_in_the_shapes_of_the_plan():
    pairs = mixed()
    packed = pack_pairs(pairs, SHELLS, max_programs=2)
    assert sorted(sum(packed.members, ())) == list(range(9)) and len(packed.shapes) == 2
    batches = list(pair_batches(packed, 3, seed=1))
    expected = [(int(p.start.numbers[0]), p.start.n_atoms) for p in pairs]
    result = firsts(batches)
    assert sorted(f for f in result if f[1]) == sorted(expected)
    assert result.count((0, 0)) == 3 * len(batches) - 9
    shapes = {shape.n_atoms: shape for shape in packed.shapes}
    for batch in batches:
        shape = shapes[batch.start.n_atoms]
        for lists in (batch.neighbors, batch.target_neighbors):
            assert lists.capacities == shape.capacities and not lists.overflow.any()
            assert lists.offsets.shape == (3, shape.n_offsets, 3)
        assert batch.target.positions.shape == batch.labels.forces.shape == batch.fixed.shape == (3, shape.n_atoms, 3)
        np.testing.assert_array_equal(batch.target.numbers, batch.start.numbers)


def test_rows_are_the_pairs_padded():
    pairs = pairs_from_frames([final(0.001, fixed=[2])]) + read_pairs(FILE)
    (batch,) = pair_batches(pack_pairs(pairs, SHELLS, max_programs=1), 2)
    for k, pair in enumerate(pairs):
        row, n = pytree.take(batch, k), pair.start.n_atoms
        for padded, system in ((row.start, pair.start), (row.target, pair.target)):
            np.testing.assert_array_equal(padded.positions[:n], system.positions)
            np.testing.assert_array_equal(padded.cell, system.cell)
            assert not padded.numbers[n:].any()
        np.testing.assert_array_equal(row.fixed[:n], pair.fixed)
        np.testing.assert_array_equal(row.labels.forces[:n], pair.labels.forces)
        np.testing.assert_array_equal(row.labels.weights, pair.labels.weights)
        assert not row.fixed[n:].any() and not row.labels.forces[n:].any()


def test_neighbours_are_those_of_start_and_target():
    (pair,) = read_pairs(FILE)
    (batch,) = pair_batches(pack_pairs([pair], SHELLS), 1)
    for lists, system in ((batch.neighbors, pair.start), (batch.target_neighbors, pair.target)):
        expected = neighbors.host_neighbors(system, SHELLS, lists.capacities)
        for name in ("indices", "images", "mask", "largest_counts"):
            np.testing.assert_array_equal(getattr(lists, name)[0], getattr(expected, name))


def test_capacity_has_headroom_for_the_way_and_stops_at_sel():
    (pair,) = read_pairs(FILE)
    ((shape, members),) = plan_pairs([pair], SHELLS)
    counts = np.max([neighbors.count(s, SHELLS) for s in (pair.start, pair.target)], axis=0)
    assert members == [0] and shape.n_atoms == 32
    assert all(1.25 * f <= width < 1.25 * f + 4 for width, f in zip(shape.capacities, counts, strict=True))
    ((narrow, _),) = plan_pairs([pair], (Shell(4.0, 12), Shell(3.0, 4)))
    assert narrow.capacities == (12, 4)
    assert hash(shape) != hash(narrow)


def test_mixed_sizes_are_not_padded_to_the_largest():
    large = [final(0.1, (2, 2, 2 + k)) for k in range(2)]
    pairs = pairs_from_frames([large[0], *(final(0.01 * k) for k in range(30)), large[1]])
    plans = {limit: plan_pairs(pairs, SHELLS, limit) for limit in (1, 2, 3)}
    spent = {limit: padded_work(plan) for limit, plan in plans.items()}
    assert [len(plan) for plan in plans.values()] == [1, 2, 3]
    assert spent[3] < spent[2] < 0.35 * spent[1]
    assert [(shape.n_atoms, len(members)) for shape, members in plans[3]] == [(8, 30), (64, 1), (96, 1)]
    assert plans[3][1][1] == [0] and plans[3][2][1] == [31]


def padded_work(plan) -> float:
    return sum(len(members) * float(work([shape.n_atoms, *shape.capacities])) for shape, members in plan)


def test_equal_pairs_take_one_shape():
    assert len(plan_pairs(eights(6), SHELLS, 3)) == 1


def test_images_suffice_for_cells_that_shrink_on_the_way():
    pairs = read_pairs(VARIABLE, variable_cell=True)
    packed = pack_pairs(pairs, SHELLS, max_programs=1)
    (batch,) = pair_batches(packed, 3)
    assert batch.neighbors.offsets.shape[1] == packed.shapes[0].n_offsets
    search = jax.jit(jax.vmap(lambda system, offsets: neighbors.all_images(system, SHELLS, (100, 60), offsets)))
    for systems in (batch.start, batch.target):
        shrunk = systems._replace(positions=0.9 * systems.positions, cell=0.9 * systems.cell)
        lists = search(shrunk, batch.neighbors.offsets)
        assert not lists.overflow.any()
        for k in range(3):
            np.testing.assert_array_equal(lists.largest_counts[k], neighbors.count(pytree.take(shrunk, k), SHELLS))
            offsets = batch.neighbors.offsets[k]
            assert not offsets[0].any()


def test_a_fixed_cell_searches_no_more_images_than_it_needs():
    (pair,) = read_pairs(FILE)
    ((shape, _),) = plan_pairs([pair], SHELLS)
    assert shape.n_offsets == len(image_offsets(pair.start.cell, pair.start.pbc, 4.0))


def test_order_follows_the_seed():
    packed = pack_pairs(mixed(), SHELLS, max_programs=3)
    plain, again = (list(pair_batches(packed, 2)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, plain, again)
    members = [k for batch in packed.members for k in batch]
    numbers = [int(pair.start.numbers[0]) for pair in mixed()]
    assert [z for z, n in firsts(plain) if n] == [numbers[k] for k in members]
    orders = {}
    for seed in (0, 1, 2):
        first, second = (list(pair_batches(packed, 2, seed)) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, second)
        orders[seed] = firsts(first)
    assert len({tuple(order) for order in orders.values()}) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(firsts(plain))
    sizes = {tuple(n > 13 for _, n in order) for order in orders.values()}
    assert len(sizes) > 1  # batches of different shapes come in another order too


def test_empty_rows_are_zero():
    packed = pack_pairs(read_pairs(FILE), SHELLS)
    (batch,) = pair_batches(packed, 4, seed=0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(pytree.take(batch, slice(1, None))))
    assert batch.start.numbers[0].all() and len(batch.start.numbers) == 4


def test_arrays_are_made_once(monkeypatch):
    packed = pack_pairs(eights(3), SHELLS)
    monkeypatch.setattr(neighbors.host, "pairs", None)  # no search from here on
    assert [len(list(pair_batches(packed, 2, seed))) for seed in range(3)] == [2, 2, 2]


def test_what_cannot_be_packed_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no pairs"):
        pack_pairs([], SHELLS)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(pair_batches(pack_pairs(eights(1), SHELLS), 0))
    one, two = eights(2)
    with_parameters = two.start._replace(fparam=np.ones(2))
    with pytest.raises(ValueError, match="carry the same fparam or none does: no fparam in .*; 2 numbers fparam in"):
        pack_pairs([one, two._replace(start=with_parameters, target=with_parameters)], SHELLS)
