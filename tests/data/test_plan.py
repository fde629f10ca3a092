"""Shapes chosen from a histogram: they hold every frame, are few, and waste little; histograms of real data."""

import label_frames as make
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax import data
from lamjax.data.counting import exact_shapes
from lamjax.data.frame_plan import Plan, choose
from lamjax.neighbors import Shell, count, plan_capacities
from lamjax.shapes import Bucket, histogram, merge, work


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 15), st.integers(1, 8)), min_size=1, max_size=60),
    st.integers(1, 6),
)
def test_every_shape_fits_and_no_plan_exceeds_its_limit(rows, limit):
    shapes = np.array(rows)
    buckets, counted = merge(*histogram(shapes), limit)
    assert 1 <= len(buckets) <= limit and counted.sum() == len(shapes)
    order = np.argsort(work(buckets))
    plan = Plan((), tuple(_bucket(b) for b in buckets[order]), (), 0.0)
    places = choose(shapes, plan)
    assert (places >= 0).all()
    for shape, place in zip(shapes, places, strict=True):
        assert (shape <= buckets[order][place]).all()
    assert np.array_equal(np.bincount(places, minlength=len(buckets)), counted[order])


def _bucket(row) -> Bucket:
    return Bucket(int(row[0]), tuple(map(int, row[1:])))


def test_exact_shapes_are_those_of_one_frame_after_another():
    frames = make.copper_frames(7)
    for shells in ((Shell(4.0),), (Shell(4.0), Shell(3.0, 8)), (Shell(3.5, 30), Shell(3.0), Shell(3.5, 6))):
        shells = tuple(sorted(shells, key=lambda s: -s.cutoff))
        expected = [(f.system.n_atoms, *plan_capacities(count(f.system, shells), shells)) for f in frames]
        np.testing.assert_array_equal(exact_shapes(frames, shells), expected)


def test_a_short_run_compiles_less():
    frames = make.copper_frames(6)
    programs = [data.plan(frames, make.MORSE.shells, 6, n, batch_size=1).n_programs for n in (10, 1e5, 1e9, None)]
    assert programs[0] == 1 and programs == sorted(programs) and programs[1] > 1
    assert programs[2] == programs[3]


def test_a_shape_for_few_frames_costs_a_batch_that_is_hardly_filled():
    """One crystal with wide lists among ten others of the same sizes: three batches in all, not one more for it."""
    frames = make.copper_frames(11)
    together = data.plan(frames, (Shell(4.0), Shell(3.0, 8)), 6)
    assert together.n_programs == 1
    many = data.plan(frames * 200, (Shell(4.0), Shell(3.0, 8)), 6)
    assert many.n_programs > 1 and many.waste < together.waste


def test_plans_know_the_batches_they_are_for():
    """Rows are filled with structures of any sizes, a number of structures is padded to the largest of them."""
    frames = make.copper_frames(40)  # of 4 and 8 atoms
    shells = (Shell(3.0, 8),)  # the same slots in all
    assert [b.n_atoms for b in data.plan(frames, shells, 4, batch_size=2).buckets] == [4, 8]
    (bucket,) = data.plan(frames, shells, 4, batch_size="auto:64").buckets
    assert (bucket.least, bucket.n_atoms) == (4, 8)
    filled = data.plan(frames, shells, 1, batch_size="auto:64").waste
    assert filled < 0.12 < 0.2 < data.plan(frames, shells, 1, batch_size=2).waste


def test_frames_smaller_than_planned_have_a_place():
    frames = make.copper_frames(12)
    plan = data.plan([f for f in frames if f.system.n_atoms == 8], (Shell(3.0, 8),), 1)
    shown = [b.frame.ravel() for b in data.batches(data.pack(frames, plan), "auto:20", epochs=1)]
    assert sorted(k for k in np.concatenate(shown).tolist() if k >= 0) == list(range(12))
