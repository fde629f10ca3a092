"""Which structures lie in one row, and how arrays grow."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax.neighbors import Shell
from lamjax.shapes import Bucket, grow, rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=80), st.integers(1, 200), st.integers(1, 5))
def test_rows_are_never_too_narrow(sizes, wanted, n_rows):
    """Every structure once, in rows that hold it, whatever the sizes; few rows are much emptier than need be."""
    sizes, size = np.array(sizes), f"auto:{wanted}"
    bucket = Bucket(int(sizes.max()), (4,), int(sizes.min()))
    filling, shape = rows.fill(sizes, bucket, size), rows.row_shape(bucket, size)
    for rng in (None, np.random.default_rng(0)):
        drawn = filling.drawn(rng)
        assert sorted(drawn.tolist()) == list(range(len(sizes)))
        for a, b in zip(filling.starts, filling.starts[1:], strict=False):
            assert b > a and sizes[drawn[a:b]].sum() <= shape.n_atoms and b - a <= shape.n_structures
            spread = rows.split(sizes[drawn[a:b]].tolist(), size, n_rows)
            part = rows.row_shape(bucket, size, n_rows)
            assert sorted(k for row in spread for k in row) == list(range(b - a)) and len(spread) == n_rows
            for row in spread:
                assert sizes[drawn[a:b]][row].sum() <= part.n_atoms and len(row) <= part.n_structures
    assert filling.n_batches <= 1 + 2 * sizes.sum() * 17 / 16 / shape.n_atoms or filling.n_batches == len(sizes)


def test_large_sets_repeat_the_pattern_of_a_smaller_one(monkeypatch):
    sizes = np.random.default_rng(2).integers(1, 60, 3001)
    bucket = Bucket(60, (4,), 1)
    whole = rows.fill(sizes, bucket, "auto:100")
    monkeypatch.setattr(rows, "BLOCK", 400)
    blocks = rows.fill(sizes, bucket, "auto:100")
    width = rows.row_shape(bucket, "auto:100").n_atoms
    totals = np.add.reduceat(sizes[blocks.drawn(None)], blocks.starts[:-1])
    assert totals.max() <= width and (np.diff(blocks.starts) > 0).all() and blocks.starts[-1] == 3001
    assert blocks.n_batches < 1.03 * whole.n_batches and totals.mean() > 0.9 * width


def test_widths_grow_in_steps_up_to_sel():
    shells = (Shell(6.0, 60), Shell(4.0, 20))
    assert grow((0, 0), (10, 3), shells) == (16, 8)
    assert grow((16, 8), (17, 3), shells) == (24, 8)
    assert grow((24, 8), (500, 300), shells) == (60, 20)
    assert grow((0,), (100,), (Shell(6.0),)) == (120,)
