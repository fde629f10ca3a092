"""Plans and batches: every frame fits, every epoch shows each frame once, no shape outside the plan."""

import jax
import label_frames as make
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax import data, neighbors
from lamjax.data.plan import _merge, work
from lamjax.neighbors import Shell

SHELLS = (Shell(4.0), Shell(3.0, 8))


@pytest.fixture(scope="module")
def frames():
    return make.copper_frames(11)


def test_a_plan_holds_every_frame_and_says_its_waste(frames):
    for limit in (1, 2, 6):
        plan = data.plan(frames, SHELLS, limit)
        assert plan.n_programs <= limit and sum(plan.n_frames) == len(frames) and 0 <= plan.waste < 1
        packed = data.pack(frames, plan)
        assert sum(len(b.frame) for b in packed.buckets) == len(frames)
        assert not any(b.neighbors.overflow.any() for b in packed.buckets)
    assert data.plan(frames, SHELLS, 1).waste > data.plan(frames, SHELLS, 6).waste


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15), st.integers(1, 8)), min_size=1), st.integers(1, 5))
def test_merged_shapes_hold_all_and_are_no_more_than_allowed(shapes, limit):
    exact = np.array(shapes)
    unique, counts = np.unique(exact, axis=0, return_counts=True)
    buckets, members = _merge(unique, counts, limit)
    assert len(buckets) <= limit and members.sum() == len(exact)
    assert all(np.any(np.all(one <= buckets, axis=1)) for one in exact)
    assert np.sum(members * work(buckets)) >= np.sum(work(exact)) * (1 - 1e-12)  # the order of the sums differs


def test_a_frame_outside_the_plan_is_named(frames):
    plan = data.plan([f for f in frames if f.system.n_atoms == 4], SHELLS, 2)
    with pytest.raises(ValueError, match="copper frame 1: .* fits none of the planned shapes.*validation included"):
        data.pack(frames, plan)


def test_packed_neighbors_equal_those_of_each_structure(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 1), np.float64)
    (bucket,) = packed.buckets
    for row, k in enumerate(bucket.frame):
        alone = neighbors.allocate(frames[k].system, SHELLS[:1])
        n = frames[k].system.n_atoms
        assert int(alone.mask.sum()) == int(bucket.neighbors.mask[row].sum())
        assert not bucket.neighbors.mask[row, n:].any()
        assert (bucket.neighbors.indices[row, n:] == np.arange(n, 8)[:, None]).all()


def test_every_epoch_shows_every_frame_once(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    for size in (1, 3, "auto:12"):
        n = data.n_batches(packed, size)
        seen = list(data.batches(packed, size, seed=5, epochs=2))
        assert len(seen) == 2 * n
        for epoch in (seen[:n], seen[n:]):
            shown = np.concatenate([b.frame for b in epoch])
            assert sorted(shown[shown >= 0]) == list(range(len(frames)))
    orders = [[tuple(b.frame) for b in data.batches(packed, 3, seed=s, epochs=1)] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_any_point_of_the_order_can_be_resumed(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    whole = [tuple(b.frame) for b in data.batches(packed, 3, seed=7, epochs=3)]
    for start in (1, 4, 5, 9):
        assert [tuple(b.frame) for b in data.batches(packed, 3, seed=7, epochs=3, start=start)] == whole[start:]


def test_short_batches_are_filled_with_rows_that_weigh_nothing(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    seen = list(data.batches(packed, 4, seed=0, epochs=1))
    assert {len(b.frame) for b in seen} == {4}
    empty = [jax.tree.map(lambda x, r=row: x[r], b) for b in seen for row in np.flatnonzero(b.frame < 0)]
    assert empty
    for row in empty:
        assert not row.system.numbers.any() and not row.labels.weights.any() and not row.neighbors.mask.any()
    shapes = {jax.tree.structure(b) for b in seen} | {tuple(x.shape for x in jax.tree.leaves(b)) for b in seen}
    assert len(shapes) == 1 + len(packed.buckets)


def test_precision_of_a_batch(frames):
    batch = next(data.batches(data.pack(frames, data.plan(frames, SHELLS), np.float32), 2))
    assert batch.system.positions.dtype == batch.labels.forces.dtype == np.float32
    assert batch.labels.energy.dtype == np.float64


def test_batch_sizes_by_atoms_and_wrong_ones(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    sizes = {b.system.n_atoms: len(b.frame) for b in data.batches(packed, "auto", epochs=1)}
    assert sizes == {4: 8, 8: 4}  # ceil(32 / n_atoms)
    for wrong in ("many", "auto:0", 0):
        with pytest.raises(ValueError, match="batch_size must be"):
            next(data.batches(packed, wrong))
