"""Batches from the background: same order, errors where they belong, no thread left behind, an honest clock."""

import gc
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import data


@pytest.fixture(autouse=True)
def no_thread_is_left():
    gc.freeze()  # what there is already: to look through millions of objects of other tests takes seconds
    yield
    gc.collect()
    gc.unfreeze()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("lamjax prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_order_is_kept(depth):
    rng = np.random.default_rng(0)

    def put(k):
        time.sleep(0.003 * rng.random())
        return k

    assert list(data.prefetch(range(40), depth, put)) == list(range(40))


def test_items_come_on_the_device_as_they_were():
    items = [{"a": np.arange(3.0), "b": (np.int32(k),)} for k in range(3)]
    for result, item in zip(data.prefetch(items), items, strict=True):
        assert isinstance(result["a"], jax.Array) and result["a"].dtype == np.float64
        jax.tree.map(np.testing.assert_array_equal, result, item)


def test_the_precision_of_the_consumer_holds_in_the_background():
    with jax.enable_x64(False):
        (result,) = data.prefetch([np.arange(3.0)])
    assert result.dtype == jnp.float32


def test_errors_come_where_the_item_would_have_been():
    def items():
        yield from range(4)
        raise KeyError("the fifth")

    seen = []
    with pytest.raises(KeyError, match="the fifth"):
        for item in data.prefetch(items(), 2, lambda k: k):
            seen.append(item)
    assert seen == [0, 1, 2, 3]

    def put(k):
        if k == 2:
            raise ValueError("cannot put 2")
        return k

    seen = []
    with pytest.raises(ValueError, match="cannot put 2"):
        seen += [seen.append(k) for k in data.prefetch(itertools.count(), 4, put)]
    assert seen == [0, 1]


def test_no_more_than_depth_is_made_ahead():
    drawn = []

    def items():
        for k in range(100):
            drawn.append(k)
            yield k

    with data.prefetch(items(), 3, put=lambda k: k) as feed:
        next(feed)
        time.sleep(0.05)
        assert len(drawn) == 4


@pytest.mark.parametrize("how", ["break", "error", "interrupt", "dropped", "never begun"])
def test_a_loop_may_end_in_any_way(how):
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    feed = data.prefetch(endless(), put=lambda k: k)
    if how in ("error", "interrupt"):
        kind = RuntimeError if how == "error" else KeyboardInterrupt
        with pytest.raises(kind), feed:
            for _ in feed:
                raise kind
    elif how == "break":
        with feed:
            for k in feed:
                if k == 3:
                    break
    elif how == "dropped":
        assert next(feed) == 0
    del feed
    gc.collect()
    assert closed == [True]


def test_the_wait_fraction_says_who_is_slower():
    def slow(n, seconds):
        for k in range(n):
            time.sleep(seconds)
            yield k

    def consume(feed, seconds):
        for _ in feed:
            time.sleep(seconds)
        return feed.wait_fraction

    assert data.prefetch(range(3)).wait_fraction == 0
    assert consume(data.prefetch(slow(10, 0.001)), 0.02) < 0.3
    assert consume(data.prefetch(slow(10, 0.02)), 0.001) > 0.6


def test_senseless_numbers_are_refused():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            data.prefetch([], wrong)
