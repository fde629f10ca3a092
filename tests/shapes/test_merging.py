"""Shapes chosen from a histogram: they hold every structure, are few, and waste little; histograms of real data."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax.neighbors import Shell, plan_capacities
from lamjax.shapes import histogram, merge, work

# (n_frames, 3) of each set: atoms, largest numbers of neighbours within 6 and 4 Å
STORED = dict(np.load(Path(__file__).parents[1] / "fixtures" / "plan_histograms.npz"))
# share of the work on padding that the search before this one left, by set and number of shapes, all slots in fours
BEFORE = {
    ("mptrj", 6): 0.509, ("alexandria", 6): 0.468, ("mlearn", 6): 0.098, ("s66x8", 6): 0.200, ("all", 6): 0.483,
    ("mptrj", 12): 0.371, ("alexandria", 12): 0.324, ("mlearn", 12): 0.054, ("s66x8", 12): 0.099, ("all", 12): 0.346,
}  # fmt: skip


def exact(name: str, sel=(120, 48)) -> np.ndarray:
    counts = np.concatenate([STORED[n] for n in sorted(STORED)]) if name == "all" else STORED[name]
    capacities = [plan_capacities(tuple(c), (Shell(6.0, sel[0]), Shell(4.0, sel[1]))) for c in counts[:, 1:].tolist()]
    return np.column_stack([counts[:, 0], capacities])


def brute_force_waste(shapes: np.ndarray, buckets: np.ndarray) -> float:
    """Every frame alone in the cheapest bucket that holds it."""
    spent = [min(float(work(b)) for b in buckets if (s <= b).all()) for s in shapes]
    return 1 - sum(float(work(s)) for s in shapes) / sum(spent)


@pytest.mark.parametrize(("name", "limit"), BEFORE)
def test_stored_histograms_waste_no_more_than_before(name, limit):
    shapes, members = histogram(exact(name))
    buckets, counted = merge(shapes, members, limit)
    spent = np.sum(counted * work(buckets))
    waste = 1 - np.sum(members * work(shapes)) / spent
    assert len(buckets) <= limit and counted.sum() == members.sum()
    in_fours = np.column_stack([shapes[:, 0], -(-shapes[:, 1:] // 4) * 4])
    assert 1 - np.sum(members * work(in_fours)) / spent <= BEFORE[name, limit] + 6e-4  # of rounding
    np.testing.assert_allclose(waste, brute_force_waste(exact(name), buckets), atol=1e-12)


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
        result, members = histogram(shapes, block)
        expected, counts = np.unique(shapes, axis=0, return_counts=True)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(members, counts)


def test_many_shapes_are_searched_in_a_coarser_grid():
    rng = np.random.default_rng(1)
    shapes = np.column_stack([rng.integers(1, 400, 6000), 4 * rng.integers(1, 30, 6000), 4 * rng.integers(1, 12, 6000)])
    buckets, counted = merge(*histogram(shapes), 6)
    assert len(buckets) == 6 and counted.sum() == 6000
    whole, _ = merge(*histogram(shapes), 1)
    assert np.sum(counted * work(buckets)) < 0.6 * 6000 * work(whole)[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15), st.integers(1, 8)), min_size=1), st.integers(1, 5))
def test_merged_shapes_hold_all_and_are_no_more_than_allowed(shapes, limit):
    exact = np.array(shapes)
    unique, counts = np.unique(exact, axis=0, return_counts=True)
    buckets, members = merge(unique, counts, limit)
    assert len(buckets) <= limit and members.sum() == len(exact)
    assert all(np.any(np.all(one <= buckets, axis=1)) for one in exact)
    assert np.sum(members * work(buckets)) >= np.sum(work(exact)) * (1 - 1e-12)  # the order of the sums differs


def test_a_further_shape_must_save_what_it_costs():
    """With a law of cost of one's own: here the width alone, as of structures whose padding is not computed."""
    shapes, members = np.array([[1, 4], [9, 8]]), np.array([10, 10])
    width = lambda boxes: np.asarray(boxes, float)[..., 1]  # noqa: E731
    one, _ = merge(shapes, members, 4, free=0.0, least=40.0, cost=width)  # two save 10 * (8 - 4), which is not more
    two, counted = merge(shapes, members, 4, free=0.0, least=39.0, cost=width)
    np.testing.assert_array_equal(one, [[9, 8]])
    np.testing.assert_array_equal(two[np.argsort(two[:, 0])], shapes)
    assert counted.tolist() == [10, 10]
