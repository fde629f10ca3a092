"""Shapes chosen from a histogram: they hold every frame, are few, and waste little; histograms of real data."""

from pathlib import Path

import label_frames as make
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax import data
from lamjax.data.counting import exact_shapes
from lamjax.data.frame_plan import Plan, choose
from lamjax.neighbors import Shell, count, plan_capacities
from lamjax.shapes import Bucket, histogram, merge, work

# (n_frames, 3) of each set: atoms, largest numbers of neighbours within 6 and 4 Å
STORED = dict(np.load(Path(__file__).parents[1] / "fixtures" / "plan_histograms.npz"))
# share of the work on padding that the search before this one left, by set and number of shapes
BEFORE = {
    ("mptrj", 6): 0.509, ("alexandria", 6): 0.468, ("mlearn", 6): 0.098, ("s66x8", 6): 0.200, ("all", 6): 0.483,
    ("mptrj", 12): 0.371, ("alexandria", 12): 0.324, ("mlearn", 12): 0.054, ("s66x8", 12): 0.099, ("all", 12): 0.346,
}  # fmt: skip


def exact(name: str, sel=(120, 48)) -> np.ndarray:
    counts = np.concatenate([STORED[n] for n in sorted(STORED)]) if name == "all" else STORED[name]
    found = [plan_capacities(tuple(c), (Shell(6.0, sel[0]), Shell(4.0, sel[1]))) for c in counts[:, 1:].tolist()]
    return np.column_stack([counts[:, 0], found])


def brute_force_waste(shapes: np.ndarray, buckets: np.ndarray) -> float:
    """Every frame alone in the cheapest bucket that holds it."""
    spent = [min(float(work(b)) for b in buckets if (s <= b).all()) for s in shapes]
    return 1 - sum(float(work(s)) for s in shapes) / sum(spent)


@pytest.mark.parametrize(("name", "limit"), BEFORE)
def test_stored_histograms_waste_no_more_than_before(name, limit):
    shapes, members = histogram(exact(name))
    buckets, counted = merge(shapes, members, limit)
    waste = 1 - np.sum(members * work(shapes)) / np.sum(counted * work(buckets))
    assert len(buckets) <= limit and counted.sum() == members.sum()
    assert waste <= BEFORE[name, limit] + 6e-4  # of rounding
    np.testing.assert_allclose(waste, brute_force_waste(exact(name), buckets), atol=1e-12)


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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=2, max_size=7, unique=True))
def test_two_shapes_are_the_best_two(rows):
    """Against all pairs of boxes; the 1 % of the work that a second shape must save may leave one."""
    shapes, members = histogram(np.array(rows))
    buckets, counted = merge(shapes, members, 2)
    grid = np.array([(a, b) for a in np.unique(shapes[:, 0]) for b in np.unique(shapes[:, 1])])
    fits = np.all(shapes[:, None, :] <= grid, axis=-1)
    costs = np.where(fits, members[:, None] * work(grid), np.inf)
    best = np.minimum(costs[:, :, None], costs[:, None, :]).sum(axis=0).min()
    assert best * (1 - 1e-9) <= np.sum(counted * work(buckets)) <= best * 1.0101


def test_a_histogram_in_blocks_is_that_of_all():
    shapes = np.random.default_rng(0).integers(0, 5, (300, 3))
    for block in (7, 100, 1000):
        found, members = histogram(shapes, block)
        expected, counts = np.unique(shapes, axis=0, return_counts=True)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(members, counts)


def test_many_shapes_are_searched_in_a_coarser_grid():
    rng = np.random.default_rng(1)
    shapes = np.column_stack([rng.integers(1, 400, 6000), 4 * rng.integers(1, 30, 6000), 4 * rng.integers(1, 12, 6000)])
    buckets, counted = merge(*histogram(shapes), 6)
    assert len(buckets) == 6 and counted.sum() == 6000
    whole, _ = merge(*histogram(shapes), 1)
    assert np.sum(counted * work(buckets)) < 0.6 * 6000 * work(whole)[0]


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
