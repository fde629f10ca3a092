"""Which frames are labelled, by hand."""

import numpy as np
import pytest

from lamjax.distillation import LabelConfig, TrustConfig
from lamjax.distillation.selection import quantiles, select

DEVIATION = [0.01, 0.1, np.inf, 0.2, 0.05, 0.299, 0.3, 5.0]
TRUST = TrustConfig(lower=0.05, upper=0.3)


def test_frames_between_the_levels_are_labelled():
    selected = select(DEVIATION, TRUST, LabelConfig(most=10, fresh=1), seed=0)
    assert (selected.below, selected.within, selected.above) == (1, 4, 3)
    assert len(selected.fresh) == 1 and {*selected.train, *selected.fresh} - {0} == {1, 3, 4, 5}
    assert not set(selected.train) & set(selected.fresh)


def test_fresh_frames_are_drawn_from_all_that_are_not_above():
    drawn = [select(DEVIATION, TRUST, LabelConfig(most=1, fresh=2), seed) for seed in range(60)]
    assert {int(k) for one in drawn for k in one.fresh} == {0, 1, 3, 4, 5}
    assert {int(k) for one in drawn for k in one.train} == {1, 3, 4, 5}
    assert all(len(one.train) == 1 and len(one.fresh) == 2 for one in drawn)


def test_the_same_seed_draws_the_same_frames():
    a, b = (select(DEVIATION, TRUST, LabelConfig(2, 2), seed=7) for _ in range(2))
    assert a.train.tolist() == b.train.tolist() and a.fresh.tolist() == b.fresh.tolist()


def test_nothing_is_chosen_where_all_is_beyond_trust():
    selected = select([1.0, np.inf], TRUST, LabelConfig(), seed=0)
    assert selected.above == 2 and not len(selected.train) and not len(selected.fresh)


def test_quantiles_say_what_is_infinite():
    assert quantiles([0.1] * 6 + [0.2] * 13 + [np.inf]) == {"50 %": 0.2, "95 %": None, "100 %": None}
    assert quantiles(np.arange(1, 102)) == {"50 %": 51, "95 %": 96, "100 %": 101}


@pytest.mark.parametrize("levels", [(0.3, 0.05), (0.1, 0.1), (-0.1, 0.2)])
def test_levels_the_wrong_way_round_are_told(levels):
    with pytest.raises(ValueError, match="below upper"):
        TrustConfig(*levels)
