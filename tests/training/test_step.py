"""What one step can be told: accumulate, scale parts, share layers, average the parameters."""

import itertools

import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import optax
import pytest

from lamjax import PotentialConfig, build, data, losses, numerics, pytree, training
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.losses import LabelLossConfig, TaskBatches
from lamjax.potential import Params, select

LOSS = losses.label_loss(make.MORSE)
SMALL = DPA1Config(rcut=3.0, sel=16, neuron=(2, 4), axis_neuron=2, tebd_dim=2)


@pytest.fixture(scope="module")
def packed():
    """Frames of one shape."""
    frames = make.copper_frames(8, sizes=(1,))
    return data.pack(frames, data.plan(frames, make.MORSE.shells, 1), np.float64)


@pytest.fixture(scope="module")
def wrong():
    """Parameters that have something to learn."""
    return jax.tree.map(lambda x: 1.1 * x, make.MORSE.init())


def last(loss, params, optimizer, batches, **options):
    state = training.init(params, optimizer, ema=options.get("ema_decay") is not None)
    return [state for state, _ in training.fit(loss, state, optimizer, batches, **options)][-1]


def test_accumulated_batches_are_one_large_batch(packed, wrong):
    # every batch has the same number of atoms and labels: the mean of the gradients is the gradient of the whole
    config = training.OptimizerConfig("adam", 0.5)
    small = list(data.batches(packed, 2, seed=None, epochs=3))
    large = list(data.batches(packed, 8, seed=None, epochs=3))
    one = last(LOSS, wrong, training.optimizer(config, 1e-2), large)
    four = last(LOSS, wrong, training.optimizer(config, 1e-2, accumulate=4), small, accumulate=4)
    assert int(four.step) == 12 and int(one.step) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), one.params, four.params)


class Adam:
    """Kingma & Ba, arXiv 1412.6980, algorithm 1, of a gradient that is first scaled down to a norm, in numpy."""

    def __init__(self, rate: float, most: float):
        self.rate, self.most, self.m, self.v, self.t = rate, most, 0.0, 0.0, 0

    def step(self, gradient: np.ndarray, norm: float) -> np.ndarray:
        g, self.t = gradient * min(1, self.most / norm), self.t + 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        return -self.rate * self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


@pytest.mark.parametrize("way", ["plain", "by head", "accumulated"])
def test_gradients_are_clipped_before_adam(way):
    """Norms above and below the limit: of gradients of one size Adam hides what is done to them before."""
    rng, most = np.random.default_rng(0), 0.5
    gradients = [size * rng.normal(size=(2, 5)) for size in (2.0, 0.03, 0.4, 1e-3, 1.0)]
    assert {np.linalg.norm(g) > most for g in gradients} == {True, False}
    k = 2 if way == "accumulated" else 1
    optimizer = training.optimizer(training.OptimizerConfig("adam", most), 1e-2, by_head=way == "by head", accumulate=k)

    def tree(values):
        return Params({"w": jnp.asarray(values[0])}, {"a": {"w": jnp.asarray(values[1])}})

    expected, own = np.zeros((2, 5)), [Adam(1e-2, most) for _ in range(2)]
    params = tree(expected)
    state = optimizer.init(params)
    for gradient in gradients:
        for part in (1.5, 0.5) if k == 2 else (1.0,):  # their mean is the gradient
            updates, state = optimizer.update(tree(part * gradient), state, params)
            params = optax.apply_updates(params, updates)
        norm = np.linalg.norm(gradient)  # of all parameters together
        expected = expected + [adam.step(g, norm) for adam, g in zip(own, gradient, strict=True)]
        updated = np.array([params.descriptor["w"], params.heads["a"]["w"]])
        np.testing.assert_allclose(updated, expected, rtol=1e-6)


def test_members_of_a_committee_are_clipped_one_by_one():
    gradients = np.array([[3.0, 4.0], [0.03, 0.04]])  # norms 5 and 0.05, the limit is 0.5
    optimizer = training.per_member(training.optimizer(training.OptimizerConfig("sgd", 0.5), 1.0))
    updates, _ = optimizer.update({"w": jnp.asarray(gradients)}, optimizer.init({"w": jnp.zeros((2, 2))}))
    np.testing.assert_allclose(updates["w"], [[-0.3, -0.4], [-0.03, -0.04]], rtol=1e-12)


def test_rates_and_running_means_follow_updates_not_batches(packed, wrong):
    def rate(update):
        return 1e-2 / (1 + update)

    small, seen = list(data.batches(packed, 2, seed=None, epochs=1)), []

    def loss(params, batch, ratio=1.0):
        value, metrics = LOSS(params, batch)
        return value, {**metrics, "ratio": ratio}

    optimizer = training.optimizer(training.OptimizerConfig("sgd", 0.1), rate, accumulate=2)
    state = training.init(wrong, optimizer, ema=True)
    options = {"accumulate": 2, "lr_ratio": lambda t: rate(t) / 1e-2, "ema_decay": 0.75}
    for after, metrics in training.fit(loss, state, optimizer, small, **options):
        seen.append((float(metrics["ratio"]), jax.device_get(after)))
    assert [ratio for ratio, _ in seen] == [1, 1, 0.5, 0.5]
    states = [state for _, state in seen]
    assert same(states[0].params, wrong) and same(states[0].ema, wrong) and not same(states[1].params, wrong)
    for key in states[1].params:
        mean = 0.75 * wrong[key] + 0.25 * states[1].params[key]
        np.testing.assert_allclose(states[1].ema[key], mean, rtol=1e-12)
        np.testing.assert_array_equal(states[2].ema[key], states[1].ema[key])


def test_parts_have_their_own_rates(packed, wrong):
    params = {"near": wrong, "far": wrong}

    def loss(params, batch, ratio=1.0):
        (a, metrics), (b, _) = (LOSS(params[name], batch) for name in ("near", "far"))
        return a + b, metrics

    batches = list(data.batches(packed, 4, seed=None, epochs=1))[:1]
    optimizer = optax.adam(1e-2)
    plain = last(loss, params, optimizer, batches).params
    rates = {"near": 0.5, "near/width": 0.1}  # the longest name counts
    scaled = last(loss, params, optimizer, batches, rates=rates, freeze=("far/depth",)).params
    for part, leaf, factor in (
        ("near", "depth", 0.5),
        ("near", "width", 0.1),
        ("far", "width", 1),
        ("far", "depth", 0),
    ):
        moved, expected = scaled[part][leaf] - wrong[leaf], factor * (plain[part][leaf] - wrong[leaf])
        np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-15)


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def two_heads():
    """A tiny model with two heads, and frames packed for it."""
    heads = tuple((name, EnergyHeadConfig(neuron=(4, 4), dim_case_embd=2)) for name in "ab")
    potential = build(PotentialConfig(("Cu", "O"), SMALL, heads))
    params = potential.init(jax.random.key(0), jnp.float64)
    frames = make.copper_frames(6, sizes=(1,))
    return potential, params, data.pack(frames, data.plan(frames, potential.shells, 1), np.float64)


def slots(packed, *tasks) -> TaskBatches:
    """One slot a task, two frames each."""
    parts = list(itertools.islice(data.batches(packed, 2, seed=None), len(tasks)))
    return TaskBatches(np.array(tasks, np.int32), pytree.stack(parts))


def test_several_tasks_in_one_program_have_the_losses_of_each(two_heads):
    potential, params, packed = two_heads
    configs = [LabelLossConfig(), LabelLossConfig(start_pref_e=3.0, limit_pref_v=2.0)]
    together = jax.jit(losses.heads_loss(potential, ["a", "b"], configs))
    single = [losses.label_loss(select(potential, head), c) for head, c in zip("ab", configs, strict=True)]
    for tasks in ((0,), (1,), (1, 0), (1, 1, 0)):
        given = slots(packed, *tasks)
        value, metrics = together(params, given, 0.3)
        alone = [single[t](params, pytree.take(given.batch, k), 0.3) for k, t in enumerate(tasks)]
        np.testing.assert_allclose(value, np.mean([loss for loss, _ in alone]), rtol=1e-12)
        np.testing.assert_array_equal(metrics["task"], tasks)
        for key in alone[0][1]:
            np.testing.assert_allclose(metrics[key], [own[key] for _, own in alone], rtol=1e-10, atol=1e-12)
    assert together._cache_size() == 3  # numbers of slots: which tasks they are does not compile anything


def test_heads_of_different_form_are_refused_in_one_loss(two_heads):
    potential, _, _ = two_heads
    with pytest.raises(ValueError, match="heads of one shape, and losses that differ in prefactors only"):
        losses.heads_loss(potential, ["a", "b"], [LabelLossConfig(), LabelLossConfig(loss_func="mae")])


def test_shared_layers_stay_one_and_the_embedding_tells_heads_apart(two_heads):
    potential, params, packed = two_heads
    heads = params.heads
    np.testing.assert_array_equal([heads[name]["statistics"]["case_embd"] for name in "ab"], np.eye(2))
    loss = losses.heads_loss(potential, ["a", "b"], [LabelLossConfig()] * 2)
    optimizer = training.optimizer(training.OptimizerConfig("adamw"), 1e-2, by_head=True)
    batches = [slots(packed, task) for task in (1, 1, 0, 1)]
    for n, equal in ((3, 3), (1, 1)):
        start = training.step.shared(params, n)
        state = last(loss, start, optimizer, batches, share_layers=n)
        a, b = (state.params.heads[name]["layers"] for name in "ab")
        assert [same(x, y) for x, y in zip(a, b, strict=True)] == [True] * equal + [False] * (3 - equal)
        assert not same(a[0], start.heads["a"]["layers"][0])
    only = last(loss, training.step.shared(params, 3), optimizer, [slots(packed, 1)], share_layers=3)
    assert not same(only.params.heads["a"]["layers"][0], params.heads["a"]["layers"][0])  # task b moves what a has


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_precision_of_products_is_a_setting_of_the_step(two_heads, precision):
    potential, params, packed = two_heads
    loss = losses.heads_loss(potential, ["a"], [LabelLossConfig()])
    step = training.make_step(loss, optax.sgd(1e-3), matmul_precision=precision)
    state = training.init(pytree.cast(params, jnp.float32), optax.sgd(1e-3))
    text = step.gradient.lower(state.params, state.step, slots(packed, 0)).as_text()
    name = {"float32": "HIGHEST", "tensorfloat32": "HIGH", "bfloat16": "DEFAULT"}[precision]
    precisions = {line.partition("precision = [")[2][:20] for line in text.splitlines() if "dot_general" in line}
    assert any(name in one for one in precisions), precisions


def test_compiler_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    numerics.compiler_options.cache_clear()
    assert numerics.compiler_options() == (numerics.QUICKLY if jax.default_backend() == "cpu" else {})
    numerics.compiler_options.cache_clear()
    monkeypatch.setattr(numerics, "QUICKLY", {"xla_an_option_of_tomorrow": True})
    assert numerics.compiler_options() == {}
    numerics.compiler_options.cache_clear()


def test_a_gradient_that_is_not_finite_changes_nothing(packed):
    def loss(params, batch, lr_ratio=1.0):
        return jnp.sum(jnp.sqrt(params["a"])) + jnp.sum(params["b"]), {}

    optimizer = optax.adam(0.1)
    state = training.init({"a": jnp.zeros(2), "b": jnp.ones(3)}, optimizer, ema=True)
    before = jax.device_get(state)
    after, metrics = training.make_step(loss, optimizer, ema_decay=0.9)(state, None)
    assert not metrics["finite"] and np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)
