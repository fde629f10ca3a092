"""Learning rates equal DeePMD-kit's."""

import json

import jax
import label_frames as make
import numpy as np
import pytest

from lamjax.training import ScheduleConfig, schedule

REFERENCE = json.loads((make.FIXTURES / "learning_rate_reference.json").read_text())


@pytest.mark.parametrize("name", list(REFERENCE))
def test_learning_rates_equal_deepmd(name):
    parameters = dict(REFERENCE[name]["parameters"])
    n_steps = parameters.pop("num_steps")
    rate = jax.jit(jax.vmap(schedule(ScheduleConfig(type=name.partition("_")[0], **parameters), n_steps)))
    np.testing.assert_allclose(rate(np.array(REFERENCE[name]["steps"])), REFERENCE[name]["lr"], rtol=1e-12)


def test_a_short_run_decays_all_the_same():
    rate = schedule(ScheduleConfig(start_lr=1e-2, stop_lr=1e-4, decay_steps=5000), 4)
    np.testing.assert_allclose([rate(t) for t in range(5)], 1e-2 * 0.01 ** (np.arange(5) / 4), rtol=1e-12)


def test_a_given_decay_rate_keeps_its_interval_in_a_short_run():
    rate = schedule(ScheduleConfig(start_lr=1e-2, stop_lr=1e-4, decay_steps=5000, decay_rate=0.9), 4)
    np.testing.assert_allclose([rate(t) for t in range(5)], 1e-2, rtol=1e-12)


@pytest.mark.parametrize("decay", ["inverse_linear", "cosine", "linear"])
def test_wsd_is_constant_then_falls_to_the_end(decay):
    config = ScheduleConfig(type="wsd", start_lr=1.0, stop_lr=0.1, decay_phase_ratio=0.5, decay_type=decay)
    rate = schedule(config, 10)
    values = np.array([rate(t) for t in range(11)])
    np.testing.assert_allclose(values[:6], 1)
    assert (np.diff(values[5:]) < 0).all()
    np.testing.assert_allclose(values[10], 0.1)


@pytest.mark.parametrize(("ratio", "warmup"), [(0.1, 0), (0.3, 0), (0.3, 100), (0.85, 150), (1.0, 0)])
@pytest.mark.parametrize("decay", ["inverse_linear", "cosine", "linear"])
def test_the_decay_of_wsd_takes_its_share_of_the_whole_run(ratio, warmup, decay):
    """The share is one of all steps, warmup included; before it the rate is the first one."""
    n, start, stop = 1000, 1e-3, 1e-5
    config = ScheduleConfig("wsd", start, stop, warmup_steps=warmup, decay_phase_ratio=ratio, decay_type=decay)
    rate = jax.vmap(schedule(config, n))(np.arange(n + 1))
    first = n - ratio * n  # where the fall begins
    expected = []
    for t in range(n + 1):
        done = max(0.0, (t - first) / (n - first))
        fall = {
            "inverse_linear": start * stop / (stop + (start - stop) * done),
            "cosine": stop + (start - stop) * np.cos(np.pi * done / 2) ** 2,
            "linear": (1 - done) * start + done * stop,
        }
        expected.append(start * t / warmup if t < warmup else fall[decay])
    np.testing.assert_allclose(rate, expected, rtol=1e-9)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="0 < stop_lr <= start_lr"):
        ScheduleConfig(start_lr=1e-4, stop_lr=1e-3)
    with pytest.raises(ValueError, match="warmup_steps 10 must be less than the 10 steps"):
        schedule(ScheduleConfig(warmup_steps=10), 10)
    with pytest.raises(ValueError, match="exceed the run"):
        schedule(ScheduleConfig(type="wsd", warmup_steps=95), 100)
