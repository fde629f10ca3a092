"""Small networks against formulas written out, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import nn


def weights(rng, n_in, n_out, timestep=False):
    layer = {"w": rng.normal(size=(n_in, n_out)), "b": rng.normal(size=n_out)}
    return layer | ({"idt": rng.normal(size=n_out)} if timestep else {})


@pytest.mark.parametrize(("n_out", "residual"), [(3, 1), (6, 2), (5, 0)])
def test_dense_adds_its_input_once_twice_or_never(rng, n_out, residual):
    layer, x = weights(rng, 3, n_out, timestep=True), rng.normal(size=(4, 3))
    expected = np.tanh(x @ layer["w"] + layer["b"]) * layer["idt"]
    if residual:
        expected = expected + np.concatenate([x] * residual, axis=1)
    np.testing.assert_allclose(nn.dense(layer, x, jnp.tanh), expected, rtol=1e-13)
    np.testing.assert_allclose(
        nn.dense(layer, x, jnp.tanh, resnet=False), np.tanh(x @ layer["w"] + layer["b"]) * layer["idt"], rtol=1e-13
    )


def test_mlp_is_the_chain_of_its_layers(rng):
    layers, x = [weights(rng, 2, 4), weights(rng, 4, 4)], rng.normal(size=(3, 2))
    first = np.tanh(x @ layers[0]["w"] + layers[0]["b"]) + np.concatenate([x, x], axis=1)
    second = np.tanh(first @ layers[1]["w"] + layers[1]["b"]) + first
    np.testing.assert_allclose(nn.mlp(layers, x, jnp.tanh), second, rtol=1e-13)


def test_a_time_step_exists_only_where_there_is_a_residual(dtype):
    layers = jax.eval_shape(lambda key: nn.mlp_init(key, 3, (3, 6, 5), timestep=True, dtype=dtype), jax.random.key(0))
    assert ["idt" in layer for layer in layers] == [True, True, False]
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(layers))


def test_layer_norm_has_mean_zero_and_variance_one(rng):
    x = rng.normal(2, 3, size=(5, 64))
    y = np.asarray(nn.layer_norm(nn.layer_norm_init(64), x, 0.0))
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-13)
    np.testing.assert_allclose(y.var(axis=1), 1, rtol=1e-12)


ERF_FREE_GELU = 0.5 * 1.3 * (1 + np.tanh(np.sqrt(2 / np.pi) * (1.3 + 0.044715 * 1.3**3)))
AT_1_3 = {
    "tanh": np.tanh(1.3), "gelu": ERF_FREE_GELU, "gelu_tf": ERF_FREE_GELU, "relu": 1.3, "relu6": 1.3, "none": 1.3,
    "softplus": np.log1p(np.exp(1.3)), "sigmoid": 1 / (1 + np.exp(-1.3)), "silu": 1.3 / (1 + np.exp(-1.3)),
    "linear": 1.3,
}  # fmt: skip


@pytest.mark.parametrize("name", AT_1_3)
def test_activations_at_a_point(name):
    np.testing.assert_allclose(nn.activation(name)(jnp.float64(1.3)), AT_1_3[name], rtol=1e-14)
    np.testing.assert_allclose(nn.activation(name.upper())(jnp.float64(1.3)), AT_1_3[name], rtol=1e-14)


@pytest.mark.parametrize("threshold", [3.0, 10.0])
def test_silut_joins_silu_with_its_slope(threshold):
    f = nn.activation(f"silut:{threshold}")
    below, above = jnp.float64(threshold - 1e-9), jnp.float64(threshold)
    np.testing.assert_allclose(f(below), jax.nn.silu(below), rtol=1e-14)
    np.testing.assert_allclose(f(below), f(above), atol=3e-9)
    np.testing.assert_allclose(jax.grad(f)(below), jax.grad(f)(above), rtol=1e-7)
    assert float(f(jnp.float64(1e3))) < threshold + 1 and np.isfinite(jax.grad(f)(jnp.float64(1e3)))


def test_unknown_activations_are_refused_with_a_list():
    with pytest.raises(ValueError, match="known: .*gelu.*tanh"):
        nn.activation("swoosh")


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_keys_and_numbers_are_those_of_jax(n):
    key = jax.random.key(5)
    for result, expected in zip(nn.split(key, n), jax.random.split(key, n), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(result), jax.random.key_data(expected))
    for shape in ((n,), (n, 70)):
        np.testing.assert_array_equal(nn.normal(key, shape), jax.random.normal(key, shape))
        np.testing.assert_array_equal(nn.uniform(key, shape), jax.random.uniform(key, shape))
